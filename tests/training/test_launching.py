"""Several training processes: their refusals, failures and ends come back as if they were one."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import ProcessFailedError
from llm_retriever.training.launching import launch, resolve_processes

ROOT = Path(__file__).parents[2]
JOBS = """
import os, signal, sys, time
from pathlib import Path
from llm_retriever.errors import InputError

def work(job):
    act = job["act"]
    if act == "refuse":
        raise InputError("the text is empty", file="corpus.jsonl", line=17, field="text", hint="give it a text")
    if act == "fail":
        raise ArithmeticError("no such luck")
    if act == "starve":
        raise MemoryError("no room")
    if act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "write":
        rank = os.environ["RANK"]
        Path(job["output"], rank).write_text(os.environ["OMP_NUM_THREADS"])
        print(f"rank {rank} is done", file=sys.stderr)
        print("a library chatters")
    if act == "wait":
        Path(job["output"], os.environ["RANK"]).write_text(str(os.getpid()))
        while not Path(os.environ["LLM_RETRIEVER_STOP_FILE"]).exists():
            time.sleep(0.05)
        raise SystemExit(143)
"""


@pytest.fixture(autouse=True)
def jobs(tmp_path, monkeypatch):
    (tmp_path / "small_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    sys.modules.pop("small_jobs", None)


def started(act: str, directory: Path, processes: int = 2) -> None:
    launch("small_jobs", {"act": act, "output": str(directory)}, directory, processes=processes)


def test_zero_processes_means_one_per_gpu_and_at_least_one():
    assert resolve_processes(0) >= 1
    assert resolve_processes(3) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_input_in_a_process_is_bad_input_here_with_the_same_line(processes, tmp_path):
    with pytest.raises(InputError) as caught:
        started("refuse", tmp_path, processes)
    assert str(caught.value) == 'corpus.jsonl:17: field "text": the text is empty; give it a text'


def test_deepspeed_that_is_not_installed_is_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'"deepspeed": DeepSpeed is not installed; install it'):
        launch("small_jobs", {}, tmp_path, processes=1, deepspeed="zero2")
    assert not (tmp_path / "job.json").exists()


def test_a_failing_process_ends_all_and_its_traceback_is_told(tmp_path):
    with pytest.raises(RuntimeError, match=r"a training process failed:\n(.|\n)*ArithmeticError: no such luck"):
        started("fail", tmp_path)


@pytest.mark.parametrize(("act", "kind"), [("fail", "lasting"), ("starve", "memory"), ("die", "passing")])
def test_the_kind_of_a_processes_crash_is_told(act, kind, tmp_path):
    with pytest.raises(ProcessFailedError) as caught:
        started(act, tmp_path)
    assert caught.value.crash == kind


def test_all_work_the_first_one_is_heard_and_all_is_logged(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    started("write", tmp_path)
    cores = len(os.sched_getaffinity(0))
    assert [(tmp_path / rank).read_text() for rank in "01"] == [str(max(1, cores // 2))] * 2
    assert capfd.readouterr().err == "rank 0 is done\n"
    log = (tmp_path / "training.log").read_text()
    assert "rank 0 is done" in log
    assert "rank 1 is done" in log
    assert log.count("a library chatters") == 2


STEP = """
import sys
from pathlib import Path
from llm_retriever.training.launching import launch
launch("small_jobs", {"act": "wait", "output": sys.argv[1]}, Path(sys.argv[1]), processes=2)
"""


def waiting(directory: Path) -> tuple[subprocess.Popen, list[int]]:
    """A step whose two training processes wait; their process ids."""
    step = subprocess.Popen([sys.executable, "-c", STEP, str(directory)])
    files = [directory / "0", directory / "1"]
    while not all(file.exists() and file.read_text() for file in files):
        assert step.poll() is None
        time.sleep(0.05)
    return step, [int(file.read_text()) for file in files]


def test_sigterm_reaches_the_processes_and_ends_the_step_with_143(tmp_path):
    step, _ = waiting(tmp_path)
    step.send_signal(signal.SIGTERM)
    assert step.wait(60) == 128 + signal.SIGTERM


def test_no_process_outlives_a_step_that_was_killed(tmp_path):
    step, processes = waiting(tmp_path)
    step.kill()
    step.wait()
    deadline = time.monotonic() + 30
    while any(_runs(process) for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # It may end while it is read.
        return False
