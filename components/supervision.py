"""Runs a step's work in a process of its own, the worker, and starts it again after a crash that may pass.

The process that Kubeflow starts loads nothing heavy and only waits. A worker goes on from the checkpoints of the one before.
Neither survives the other, and nothing that a worker started survives it: two workers never write to the same place.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import RESTARTED, Crash, crash_of
from llm_retriever.training.passes import DIVISOR

RESTARTS = "LLM_RETRIEVER_RESTARTS"
"""Environment variable: how often a worker is started again."""
DEFAULT_RESTARTS, MOST_RESTARTS = 2, 100
WORKER_OF = "LLM_RETRIEVER_WORKER_OF"
"""Environment variable: process id of the process that waits for this one."""
EXIT_FAILED = 1
EXIT_PASSING, EXIT_OUT_OF_MEMORY = 75, 76
"""By which a worker says of which kind its crash was; never a step's own exit code."""
DELAYS = (1.0, 5.0)
"""Seconds before a restart; the last one from then on. A GPU is free again, and a connection there, in about that time."""
SECONDS_TO_END = 60.0
"""How long killed processes may take to be gone; one that the kernel cannot end holds its device, and no restart helps."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
OUT_OF_MEMORY_KILLS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
"""Where a container reads how many of its processes the kernel has killed for memory, in cgroups v2 and v1."""

_is_worker = False


def allowed_restarts(flag: str | None) -> int:
    """Number of restarts that a worker may have: by the flag, else by the environment, else twice.

    Raises:
        InputError: It is not a whole number from 0 to 100.
    """
    name, text = ("--restarts", flag) if flag is not None else (RESTARTS, os.environ.get(RESTARTS, ""))
    if not text.strip():
        return DEFAULT_RESTARTS
    number = int(text) if text.strip().isdecimal() else -1
    if not 0 <= number <= MOST_RESTARTS:
        raise InputError(
            f"{text!r} is not a whole number from 0 to {MOST_RESTARTS}", field=name, hint="0 means no restarts"
        )
    return number


def become_worker() -> bool:
    """Whether this process was started as a worker; it then ends when the process that waits for it does."""
    global _is_worker
    waiting = os.environ.pop(WORKER_OF, "")
    if waiting:
        _is_worker = True
        _end_with(int(waiting))
    return _is_worker


def exit_code(error: Exception) -> int:
    """Exit code after an exception: 1 or, of a worker whose crash may pass, one that says so."""
    codes = {Crash.PASSING: EXIT_PASSING, Crash.MEMORY: EXIT_OUT_OF_MEMORY} if _is_worker else {}
    return codes.get(crash_of(error), EXIT_FAILED)


@dataclass(frozen=True)
class End:
    """The end of a worker.

    Attributes:
        code: Its exit code, or minus the number of the signal that killed it.
        memory: Whether memory ran out, its own or the container's.
    """

    code: int
    memory: bool

    @property
    def may_pass(self) -> bool:
        """Whether it is worth a restart."""
        return self.code < 0 or self.code in (EXIT_PASSING, EXIT_OUT_OF_MEMORY)

    def __str__(self) -> str:
        if self.code < 0:
            return f"worker killed by {_name(-self.code)}" + (" (out of memory)" if self.memory else "")
        return "worker ran out of memory" if self.memory else "worker failed, see above"


class Supervisor:
    """Runs this program again as its own worker, and that again after a crash that may pass.

    Args:
        name: Name of the step, to begin lines of the log with.
        restarts: At most.
        memory_settings: Settings that lower the memory a worker needs, to name them in the end; where there are any, a
            worker that follows one which ran out of memory lets fewer rows through the model at once.
        command: Command of the worker; by default that of this process.
    """

    def __init__(
        self,
        name: str,
        restarts: int,
        *,
        memory_settings: tuple[str, ...] = (),
        command: list[str] | None = None,
    ) -> None:
        self.name, self.restarts, self.memory_settings = name, restarts, memory_settings
        self.command = command or [sys.executable, *sys.orig_argv[1:]]
        self._worker: int | None = None
        self._asked = 0
        self._shortages = 0
        self._strangers: frozenset[int] = frozenset()

    def run(self) -> int:
        """Works to the end.

        Returns:
            The worker's exit code; 1 where the last one crashed; 128 + the signal's number where one asked to stop.
        """
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        # A shell that has become this process by `exec` may have left children of its own.
        self._strangers = frozenset(_children(os.getpid()))
        with self._passing_signals_on():
            for restart in itertools.count():
                end = self._work(restart)
                if self._asked or not end.may_pass:
                    break
                if restart == self.restarts:
                    self._say(f"{end}; given up after {_times(self.restarts)}{self._hint(end)}")
                    break
                self._shortages += end.memory
                self._say(f"{end}; restart {restart + 1} of {self.restarts}{self._change(end)}")
                if self._stopped_within(DELAYS[min(restart, len(DELAYS) - 1)]):
                    break
        return self._code(end)

    def _work(self, restart: int) -> End:
        """Runs one worker, from its start to its end; nothing of it is left but what is complete."""
        kills = _memory_kills()
        with tempfile.TemporaryDirectory(prefix="step-", ignore_cleanup_errors=True) as scratch:
            environment = {**os.environ, WORKER_OF: str(os.getpid()), "TMPDIR": scratch}
            if restart:
                environment[RESTARTED] = "1"
            if self._shortages and self.memory_settings:
                environment[DIVISOR] = str(2**self._shortages)
            # A session of its own: a key pressed in a terminal reaches the worker through this process alone.
            worker = subprocess.Popen(self.command, env=environment, start_new_session=True)
            try:
                self._begin(worker.pid)
                code = worker.returncode = self._wait(worker.pid)
            finally:
                self._worker = None
                gone = _end_descendants(worker.pid, self._strangers)
        end = End(code, code == EXIT_OUT_OF_MEMORY or (code != 0 and _memory_kills() > kills))
        if gone or not end.may_pass:
            return end
        self._say(f"{end}, and its processes do not end")
        return End(EXIT_FAILED, end.memory)

    def _begin(self, worker: int) -> None:
        self._worker = worker
        if self._asked:
            self._pass_on(self._asked)

    @staticmethod
    def _wait(worker: int) -> int:
        """Waits for the worker's exit code; reaps what became this process's child meanwhile."""
        while True:
            process, status = os.waitpid(-1, 0)
            if process == worker:
                return os.waitstatus_to_exitcode(status)

    @contextlib.contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        """While inside, SIGTERM and SIGINT are the worker's; this process waits for what it makes of them."""
        before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self._worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker, number)

    def _stopped_within(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self._asked and time.monotonic() < until:
            time.sleep(0.05)
        return self._asked != 0

    def _code(self, end: End) -> int:
        if end.may_pass:
            return 128 + self._asked if self._asked else EXIT_FAILED
        return end.code

    def _change(self, end: End) -> str:
        if not (end.memory and self.memory_settings):
            return ""
        return f", with 1/{2**self._shortages} of the rows through the model at once"

    def _hint(self, end: End) -> str:
        return f"; lower {' or '.join(self.memory_settings)}" if end.memory and self.memory_settings else ""

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # A real-time signal.
        return f"signal {number}"


def _times(restarts: int) -> str:
    return "1 restart" if restarts == 1 else f"{restarts} restarts"


def _memory_kills() -> int:
    """Counts this container's processes that the kernel has killed for memory; 0 where it does not say."""
    for path in map(Path, OUT_OF_MEMORY_KILLS):
        with contextlib.suppress(OSError, ValueError):
            counts = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
            return int(counts.get("oom_kill", 0))
    return 0


def _end_descendants(worker: int, spared: frozenset[int]) -> bool:
    """Kills what a worker has left, as training processes in sessions of their own; whether all of it is gone.

    Orphans become children of this process, or of the init process where the system cannot do that; those in the worker's
    own group are ended there too, and training processes end when they miss the process that started them.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    until = time.monotonic() + SECONDS_TO_END
    while time.monotonic() < until:
        left = frozenset(_children(os.getpid())) - spared
        if not left:
            return True
        for child in left:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    return False


def _children(parent: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything.
            if int(path.read_text(errors="replace").rpartition(")")[2].split()[1]) == parent:
                yield int(path.parent.name)


def _end_with(waiting: int) -> None:
    """Ends this process when the one that waits for it is gone: an orphan must not go on writing."""
    if not _prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        threading.Thread(target=_watch, args=(waiting,), daemon=True).start()
    if os.getppid() != waiting:
        os._exit(EXIT_FAILED)


def _watch(waiting: int) -> None:
    while os.getppid() == waiting:
        time.sleep(1)
    os._exit(EXIT_FAILED)


def _prctl(option: int, value: int) -> bool:
    """Sets an attribute of this process; False where the system has no such thing."""
    try:
        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (AttributeError, OSError):
        return False
