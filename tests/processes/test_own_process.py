"""A function in a process of its own: what it returns, how it fails, and that it is not left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import Crash, ProcessFailedError
from llm_retriever.processes.own_process import in_own_process

PROGRAM = """
import sys
from pathlib import Path
from llm_retriever.processes.own_process import in_own_process
from tests.processes.test_own_process import sleeping
if __name__ == "__main__":
    import signal
    def stop(*_): raise SystemExit(143)
    signal.signal(signal.SIGTERM, stop)
    in_own_process(sleeping, Path(sys.argv[1]))
"""


def added(one: int, two: int) -> tuple[int, int]:
    return one + two, os.getpid()


def refusing() -> None:
    raise InputError("is wrong", field="depth", hint="use 3")


def failing() -> None:
    raise ValueError("a mistake")


def short_of_memory() -> None:
    raise MemoryError


def leaving(code: int) -> None:
    raise SystemExit(code)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeping(directory: Path) -> None:
    """Says who it is, and what it was when it was asked to stop."""
    (directory / "started").write_text(str(os.getpid()))
    try:
        time.sleep(120)
    finally:
        time.sleep(0.5)
        (directory / "stopped").touch()


def test_it_returns_what_the_function_returns() -> None:
    total, process = in_own_process(added, 1, 2)
    assert total == 3
    assert process != os.getpid()


def test_refusals_mistakes_and_ends_come_back() -> None:
    with pytest.raises(InputError, match='field "depth": is wrong; use 3'):
        in_own_process(refusing)
    with pytest.raises(ProcessFailedError, match=r"(?s)failing failed:.*Traceback.*a mistake") as failure:
        in_own_process(failing)
    assert failure.value.crash is Crash.LASTING
    with pytest.raises(ProcessFailedError) as shortage:
        in_own_process(short_of_memory)
    assert shortage.value.crash is Crash.MEMORY
    with pytest.raises(SystemExit) as end:
        in_own_process(leaving, 143)
    assert end.value.code == 143
    with pytest.raises(ProcessFailedError, match=r"killed was killed \(signal 9\)") as kill:
        in_own_process(killed)
    assert kill.value.crash is Crash.PASSING


@pytest.mark.parametrize(("number", "tidied"), [(signal.SIGTERM, True), (signal.SIGKILL, False)])
def test_it_ends_with_the_process_that_waits_for_it(number: int, tidied: bool, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    waiting = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)], env={**os.environ, "PYTHONPATH": str(root)}
    )
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process = int((tmp_path / "started").read_text())
    waiting.send_signal(number)
    assert waiting.wait(timeout=60) == (143 if tidied else -9)
    while tidied is False and Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()
    assert (tmp_path / "stopped").exists() == tidied
