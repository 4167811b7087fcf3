"""What the benchmarks share: ways of doing one work that take turns, each a process of its own, and what the machine can do.

Only Python's own library is imported here, so that a peer's environment can serve a way as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """Median, least and most of some measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sums measurements up."""
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, digits: int = 2) -> str:
        """In words: median, and the range in brackets."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


class Way:
    """A process that does its work once for every line that it is sent.

    Args:
        command: Starts it; it calls `serve`.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answers: list[dict[str, Any]] = []
        self.answer()  # until it is ready

    def answer(self) -> dict[str, Any]:
        """Waits for what it says next.

        Raises:
            RuntimeError: It has ended; what it wrote on standard error says why.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with {self._process.wait()}")
        return json.loads(line)

    def run(self) -> dict[str, Any]:
        """Does the work once.

        Returns:
            `seconds`; `processor`, seconds of all its processors; `memory`, MiB at its peak so far beyond what it held
            before its first work; and whatever the way adds, as what makes its result `useless`.

        Raises:
            RuntimeError: It has ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.answers.append(self.answer())
        return self.answers[-1]

    def seconds(self) -> list[float]:
        """Of the rounds that count: the first run only warms up."""
        return [answer["seconds"] for answer in self.answers[1:]]

    def close(self) -> None:
        """Lets it end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # It has ended before it read what it was sent.
            self._process.stdin.close()
        self._process.wait()


def serve(make: Callable[[], Callable[[], Mapping[str, Any] | None]]) -> None:
    """Does a work for every line on standard input, and answers with its times.

    Args:
        make: Sets the work up; the work is timed, and what it returns, if anything, is added to the answer.
    """
    told = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    work = make()
    before = _fresh_peak()
    with os.fdopen(told, "w") as answers:
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for _ in sys.stdin:
            started, processor = time.perf_counter(), _processor_seconds()
            more = work() or {}
            seconds = {"seconds": time.perf_counter() - started, "processor": _processor_seconds() - processor}
            print(json.dumps({**seconds, "memory": _memory("VmHWM") - before, **more}), file=answers, flush=True)


def take_turns(ways: Mapping[str, Way], rounds: int) -> None:
    """Runs all ways in turns, A B A B."""
    for _ in range(rounds):
        for way in ways.values():
            way.run()


def ratios(peer: Way, ours: Way) -> Spread:
    """How many times as long the peer takes, round by round."""
    return Spread.of([theirs / mine for theirs, mine in zip(peer.seconds(), ours.seconds(), strict=True)])


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _memory(name: str) -> float:
    # ru_maxrss would start at the size of the parent before exec.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def _fresh_peak() -> float:
    """Forgets the peak so far, that of loading; gives MiB that are held now."""
    with contextlib.suppress(OSError):  # not every sandbox has it
        Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the answer."""
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def machine() -> str:
    """Processor, cores and memory, in words."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"model name\s*:\s*(.+)", told)
    bf16 = "bf16 in hardware" if re.search(r"avx512_bf16|amx_bf16", told) else "no bf16 in hardware"
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {name[1] if name else 'a processor'}, {bf16}, {gibibytes:.0f} GiB"


def commit(root: Path) -> str:
    """The commit that is checked out; unknown where it is no checkout."""
    command = ["git", "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip() or "unknown"
