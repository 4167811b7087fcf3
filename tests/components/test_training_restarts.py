"""A training whose processes are killed goes on within the same step, and ends with the model of an undisturbed one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
UPDATES = 6
# Loaded by every Python process when it starts. The marks of checkpoints, and the finished output, get their names by a rename.
FAULTS = """
import os, signal, sys, time

FAULTS = dict(fault.split("=") for fault in os.environ.get("FAULTS", "").split())

def strike(event, arguments):
    name = os.path.basename(os.fspath(arguments[1])) if event == "os.rename" else ""
    if name not in FAULTS:
        return
    try:
        open(os.path.join(os.environ["FAULTS_DONE"], name), "x").close()
    except FileExistsError:
        return
    if FAULTS[name] == "starve":
        raise MemoryError("no room")
    if FAULTS[name] == "worker":
        os.kill(int(os.environ.get("LLM_RETRIEVER_LAUNCHER", os.getpid())), signal.SIGKILL)
        time.sleep(600)  # A training process that has lost its worker, and would go on.
    os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(strike)
"""
FLAGS = {
    "--passages-per-query": 3,
    "--query-length": 110,
    "--passage-length": 130,
    "--temperature": 0.05,
    "--batch-size": 8,
    "--micro-batch-size": 4,
    "--learning-rate": 1e-3,
    "--max-steps": UPDATES,
    "--precision": "fp32",
    "--checkpoint-minutes": 1e-6,
}
LAUNCHERS = {
    "one process": {"--processes": 1},
    "torchrun": {"--processes": 2},
    "zero2": {"--processes": 2, "--deepspeed": "zero2"},
}


class Tuning:
    """`python -m components.tune_retriever` on the tests' small inputs.

    Args:
        folder: Everything of it goes there.
        inputs: Flags of the input artifacts.
        flags: Settings that differ from `FLAGS`.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Path], flags: Mapping[str, object]) -> None:
        (folder / "faults").mkdir(parents=True)
        (folder / "sitecustomize.py").write_text(FAULTS)
        self.folder, self.retriever = folder, folder / "retriever"
        outputs = {"--retriever": self.retriever, "--curves": folder / "curves", "--metrics": folder / "metrics"}
        arguments = {**inputs, **outputs, **FLAGS, **flags}
        self.command = [sys.executable, "-m", "components.tune_retriever"]
        self.command += [str(part) for pair in arguments.items() for part in pair]

    def environment(self, faults: Mapping[str, str]) -> dict[str, str]:
        told = {
            "FAULTS": " ".join(f"{name}={fault}" for name, fault in faults.items()),
            "FAULTS_DONE": str(self.folder / "faults"),
            "PYTHONPATH": f"{self.folder}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
        }
        return {name: value for name, value in os.environ.items() if not name.startswith("LLM_RETRIEVER_")} | told

    def run(self, faults: Mapping[str, str] | None = None) -> list[str]:
        """Runs to the end, and returns the lines of the log."""
        environment = self.environment(faults or {})
        ended = subprocess.run(self.command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert ended.returncode == 0, ended.stderr
        return ended.stderr.splitlines()

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.retriever / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def inputs(backbone_directory, collection_directory, training_set_directory) -> dict[str, Path]:
    return {
        "--adapted": backbone_directory,
        "--collection": collection_directory,
        "--training-set": training_set_directory,
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_at_three_points_is_the_same_as_undisturbed(launcher, inputs, tmp_path):
    undisturbed, disturbed = (Tuning(tmp_path / name, inputs, LAUNCHERS[launcher]) for name in ("calm", "storm"))
    undisturbed.run()
    # Before the first checkpoint is whole; after the third one, a training process alone; when the model is saved.
    disturbed.command += ["--restarts", "3"]
    log = disturbed.run({"checkpoint-1.json": "worker", "checkpoint-4.json": "self", "retriever": "worker"})

    alone = "worker killed by SIGKILL" if launcher == "one process" else "worker failed, see above"
    told = [line for line in log if "; restart" in line]
    assert [line.partition("/")[0] for line in told] == [
        "tune_retriever: worker killed by SIGKILL; restart 1 of 3",
        f"tune_retriever: {alone}; restart 2 of 3",
        "tune_retriever: worker killed by SIGKILL; restart 3 of 3",
    ]
    resumed = [line for line in log if line.startswith("tune llm-ql: resumed")]
    [checkpoints] = {Path(line.partition("(")[2].rstrip(")")).parent for line in resumed}
    assert resumed == [
        f"tune llm-ql: resumed from update {update} of 6 ({checkpoints}/checkpoint-{update})" for update in (3, 5)
    ]
    assert checkpoints.parent == disturbed.folder / ".retriever.checkpoints"
    assert not list(disturbed.folder.glob("*.partial"))
    trained, expected = disturbed.weights(), undisturbed.weights()
    assert trained.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(trained[name], weight, atol=0 if launcher == "one process" else 1e-6, rtol=0)


@pytest.mark.slow
def test_memory_that_ran_out_is_followed_by_passes_of_fewer_rows_and_the_same_model(inputs, tmp_path):
    flags = {"--processes": 1, "--lora-dropout": 0.0}
    undisturbed, starved = (Tuning(tmp_path / name, inputs, flags) for name in ("calm", "starved"))
    undisturbed.run()
    log = starved.run({"checkpoint-3.json": "starve"})
    assert (
        "tune_retriever: worker ran out of memory; restart 1 of 2, with 1/2 of the rows through the model at once"
        in log
    )
    assert any("resumed from update 2 of 6" in line for line in log)
    for name, weight in undisturbed.weights().items():
        torch.testing.assert_close(starved.weights()[name], weight, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_the_next_submission_says_it_goes_on_from(inputs, tmp_path):
    tuning = Tuning(tmp_path / "long", inputs, {"--processes": 1, "--max-steps": 5000, "--checkpoint-minutes": 60})
    done = stopped_at("tune llm-ql: ", tuning)
    again = stopped_at(f"tune llm-ql: resumed from update {done} of 5,000 (", tuning)
    assert again > done


def stopped_at(line: str, tuning: Tuning) -> int:
    """Sends SIGTERM to the step when its log has a line that starts so; returns the update of the checkpoint it leaves."""
    with subprocess.Popen(
        tuning.command, env=tuning.environment({}), cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as step:
        assert step.stderr is not None
        assert any(told.startswith(line) for told in iter(step.stderr.readline, ""))
        step.send_signal(signal.SIGTERM)
        rest = step.stderr.read()
        assert step.wait(120) == 128 + signal.SIGTERM
    assert "restart" not in rest
    [mark] = tuning.folder.glob(".retriever.checkpoints/*/checkpoint-*.json")
    assert not tuning.retriever.exists()
    return int(mark.stem.rpartition("-")[2])
