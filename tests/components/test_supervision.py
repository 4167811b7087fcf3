"""A step whose work is started again: after what, how often, and what is left of the attempts before."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = [sys.executable, "-m", "tests.components.crashing_step"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LLM_RETRIEVER_")}


def flags(tmp_path: Path, act: str, attempts: int) -> list[str]:
    return ["--result", str(tmp_path / "result"), "--act", act, "--attempts", str(attempts)]


def step(
    tmp_path: Path, act: str, *more: str, attempts: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *flags(tmp_path, act, attempts), *more]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=120)


def attempts(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("kill", "worker killed by SIGKILL"),
        ("abort", "worker killed by SIGABRT"),
        ("lose", "worker failed, see above"),
    ],
)
def test_work_that_crashed_is_done_by_a_second_worker(act, reason, tmp_path):
    ended = step(tmp_path, act)
    assert ended.returncode == 0
    assert (tmp_path / "result").read_text() == "done"
    assert f"crashing_step: {reason}; restart 1 of 2" in ended.stderr.splitlines()
    first, second = attempts(tmp_path)
    assert (first["restarted"], second["restarted"]) == (False, True)
    assert first["pid"] != second["pid"]


@pytest.mark.parametrize(("act", "code"), [("refuse", 2), ("err", 1), ("fill", 1)])
def test_what_would_end_the_same_way_is_not_tried_again(act, code, tmp_path):
    ended = step(tmp_path, act, attempts=9)
    assert ended.returncode == code
    assert len(attempts(tmp_path)) == 1
    assert len(ended.stderr.splitlines()) == 1
    assert "restart" not in ended.stderr


@pytest.mark.slow
def test_work_that_crashes_each_time_is_given_up_in_one_clear_line(tmp_path):
    ended = step(tmp_path, "kill", attempts=9)
    assert ended.returncode == 1
    assert len(attempts(tmp_path)) == 3
    assert ended.stderr.splitlines() == [
        "crashing_step: worker killed by SIGKILL; restart 1 of 2",
        "crashing_step: worker killed by SIGKILL; restart 2 of 2",
        "crashing_step: worker killed by SIGKILL; given up after 2 restarts",
    ]


@pytest.mark.slow
def test_after_memory_ran_out_fewer_rows_go_through_the_model_and_the_end_names_the_settings(tmp_path):
    ended = step(tmp_path, "starve", "--restarts", "2", attempts=9)
    assert ended.returncode == 1
    assert [attempt["divisor"] for attempt in attempts(tmp_path)] == [1, 2, 4]
    told = [line for line in ended.stderr.splitlines() if "worker" in line]
    assert told == [
        "crashing_step: worker ran out of memory; restart 1 of 2, with 1/2 of the rows through the model at once",
        "crashing_step: worker ran out of memory; restart 2 of 2, with 1/4 of the rows through the model at once",
        "crashing_step: worker ran out of memory; given up after 2 restarts; lower micro_batch_size",
    ]


@pytest.mark.parametrize(
    ("more", "environment", "made"),
    [(["--restarts", "1"], "5", 2), ([], "1", 2), (["--restarts", "0"], "5", 1), ([], "0", 1)],
)
def test_the_flag_or_else_the_environment_says_how_often(more, environment, made, tmp_path):
    ended = step(tmp_path, "kill", *more, attempts=9, LLM_RETRIEVER_RESTARTS=environment)
    # Without restarts there is no second process: the step itself is killed.
    assert ended.returncode == (1 if made > 1 else -signal.SIGKILL)
    assert len(attempts(tmp_path)) == made


@pytest.mark.parametrize("wanted", ["many", "-1", "1.5", "101"])
def test_a_number_of_restarts_that_is_none_is_bad_input(wanted, tmp_path):
    by_hand, compiled = (
        step(tmp_path, "work", f"--restarts={wanted}"),
        step(tmp_path, "work", LLM_RETRIEVER_RESTARTS=wanted),
    )
    for ended, name in ((by_hand, "--restarts"), (compiled, "LLM_RETRIEVER_RESTARTS")):
        assert ended.returncode == 2
        assert ended.stderr == (
            f'crashing_step: field "{name}": {wanted!r} is not a whole number from 0 to 100; 0 means no restarts\n'
        )
    assert not (tmp_path / "attempts.jsonl").exists()


def test_kubeflow_gets_one_answer_from_the_worker_that_came_to_the_end(tmp_path):
    answer = tmp_path / "executor_output.json"
    message = {
        "inputs": {"parameterValues": {"act": "kill"}},
        "outputs": {
            "outputFile": str(answer),
            "artifacts": {"result": {"artifacts": [{"name": "result", "uri": str(tmp_path / "result")}]}},
        },
    }
    command = [*PROGRAM, "--executor-input", json.dumps(message)]
    assert subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=120).returncode == 0
    assert len(attempts(tmp_path)) == 2
    assert json.loads(answer.read_text())["artifacts"]["result"]["artifacts"][0]["name"] == "result"


def test_nothing_that_a_killed_worker_has_started_runs_beside_the_next_one(tmp_path):
    assert step(tmp_path, "leave").returncode == 0
    assert [attempt["left"] for attempt in attempts(tmp_path)] == [False, False]
    assert not Path(f"/proc/{(tmp_path / 'left').read_text()}").exists()


def test_what_ran_before_the_step_is_left_alone(tmp_path):
    command = ["sh", "-c", 'sleep 600 & echo $! > "$0"; exec "$@"', str(tmp_path / "before"), *PROGRAM]
    command += flags(tmp_path, "kill", 1)
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, timeout=120, stderr=subprocess.DEVNULL)
    sleeper = int((tmp_path / "before").read_text())
    try:
        assert ended.returncode == 0
        assert running(sleeper)
    finally:
        os.kill(sleeper, signal.SIGKILL)


def test_a_killed_worker_leaves_neither_its_draft_nor_its_scratch_files(tmp_path):
    neighbour = tmp_path / ".another.1.partial"
    neighbour.mkdir()
    assert step(tmp_path, "draft").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [neighbour.name, "attempts.jsonl", "result"]
    scratches = [Path(attempt["scratch"]) for attempt in attempts(tmp_path)]
    assert len(set(scratches)) == 2
    assert not any(path.exists() for path in scratches)


@contextlib.contextmanager
def waiting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A step whose worker waits, and the worker's process id."""
    command, noted = [*PROGRAM, *flags(tmp_path, "wait", 9)], tmp_path / "attempts.jsonl"
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE) as process:
        try:
            while not (noted.exists() and noted.read_text().endswith("\n")):
                assert process.poll() is None
                time.sleep(0.02)
            yield process, attempts(tmp_path)[0]["pid"]
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_the_workers_and_its_exit_code_the_steps(number, code, tmp_path):
    with waiting(tmp_path) as (process, worker):
        process.send_signal(number)
        assert process.wait(60) == code
        assert not Path(f"/proc/{worker}").exists()
    assert len(attempts(tmp_path)) == 1


def test_a_worker_does_not_outlive_the_step(tmp_path):
    with waiting(tmp_path) as (process, worker):
        process.kill()
        process.wait(60)
        deadline = time.monotonic() + 30
        while running(worker):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_process_that_waits_stays_light():
    program = "import sys, tests.components.crashing_step; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"torch", "transformers", "boto3", "numpy"} & set(loaded.split()) == set()
