"""Launches a training in this process or, through torchrun, in several, and passes on its errors and exit code.

On several nodes the step watches (`llm_retriever.training.trainjob`), and each node starts its own share of the processes.

Run as a module it is one of those processes: `python -m llm_retriever.training.launching MODULE JOB.json`.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import importlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from llm_retriever import files
from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.processes.crashes import Crash, ProcessFailedError, crash_of

if TYPE_CHECKING:
    from llm_retriever.training.trainjob.nodes import Nodes

STOP_FILE = "LLM_RETRIEVER_STOP_FILE"
"""Environment variable: a file whose appearance asks a training to save and stop."""
LAUNCHER = "LLM_RETRIEVER_LAUNCHER"
"""Environment variable: process id of the step that started a training process."""
EXIT_STOPPED = 128 + signal.SIGTERM
FAILURE = "failure.json"
"""The traceback of the training process that failed first, and of which kind its crash was."""
LAST_LINES = 30
NODES_MEET_SECONDS = 3600
"""The longest that a node waits for the others: they pull images and fetch inputs at their own pace."""
SHOWN = "\x1e"
"""Starts a line of a training process that the step shows; the rest is only logged."""


def resolve_processes(requested: int) -> int:
    """Number of training processes: `requested`, or one per visible GPU and at least one where that is 0."""
    import torch

    return requested or max(1, torch.cuda.device_count())


def processes_of(settings: Any) -> int:
    """Number of training processes of a step, over all its nodes."""
    if settings.nodes > 1:
        return int(settings.nodes * settings.node_gpus)
    return resolve_processes(settings.processes)


def launch(
    module: str,
    job: dict[str, Any],
    directory: Path,
    *,
    processes: int,
    deepspeed: str = "off",
    nodes: Nodes | None = None,
) -> None:
    """Calls `work(job)` of `module`, in this process, in several or on several nodes.

    With one process and without DeepSpeed the call is made here. Otherwise `torchrun --standalone` starts the
    processes, each of which calls `work(job)`; rank 0 shows progress; the whole log is `training.log` in `directory`.

    Args:
        module: Dotted name of a module with `work(job: dict) -> None`.
        job: JSON values.
        directory: A scratch directory that exists.
        processes: As `resolve_processes` gives it.
        deepspeed: `off`, `zero1`, `zero2` or `zero3`.
        nodes: The machines that train; None = this one.

    Raises:
        InputError: A process raised it, with the same line; or DeepSpeed is wanted and not installed.
        ProcessFailedError: A process failed otherwise; with its traceback, or the last lines of the log.
        SystemExit: 143, after SIGTERM, when the processes have saved a checkpoint and stopped.
    """
    if nodes is not None:
        from llm_retriever.training.trainjob.launch import launch_on_nodes

        launch_on_nodes(module, job, nodes)
        return
    if processes == 1 and deepspeed == "off":
        importlib.import_module(module).work(job)
        return
    if deepspeed != "off" and importlib.util.find_spec("deepspeed") is None:
        raise InputError("DeepSpeed is not installed", field="deepspeed", hint="install it, or use deepspeed=off")
    meeting = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={processes}"]
    _start(module, job, directory, meeting, {"GLOO_SOCKET_IFNAME": "lo"} | _environment(directory, processes))


def launch_share(module: str, job: dict[str, Any], directory: Path) -> None:
    """Calls `work(job)` in this node's share of the processes of several nodes.

    Where they meet, and how many they are, is in torchrun's own variables (`PET_NNODES`, `PET_NODE_RANK`,
    `PET_NPROC_PER_NODE`, `PET_MASTER_ADDR`, `PET_MASTER_PORT`), as the runtime of a TrainJob sets them.

    Args:
        module: Dotted name of a module with `work(job: dict) -> None`.
        job: JSON values.
        directory: A scratch directory that exists.

    Raises:
        InputError: A process of this node raised it, with the same line.
        ProcessFailedError: A process failed otherwise, here or on another node; with its traceback, or the last lines.
        SystemExit: 143, after SIGTERM, when the processes have saved a checkpoint and stopped.
    """
    meeting = [f"--rdzv-conf=timeout={NODES_MEET_SECONDS}"]
    _start(module, job, directory, meeting, _environment(directory, int(os.environ["PET_NPROC_PER_NODE"])))


def _start(module: str, job: dict[str, Any], directory: Path, meeting: list[str], environment: dict[str, str]) -> None:
    files.write_json(directory / "job.json", job)
    command = [sys.executable, "-m", "torch.distributed.run", *meeting]
    child = subprocess.Popen(
        [*command, "-m", "llm_retriever.training.launching", module, str(directory / "job.json")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches this process alone, which asks the others to save first.
        text=True,
        errors="replace",
    )
    with _stopping(child, directory / "stop"):
        last = _relayed(child, directory / "training.log")
        code = child.wait()
    _conclude(code, directory, last)


def _environment(directory: Path, processes: int) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return {
        "ACCELERATE_LOG_LEVEL": "ERROR",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        **os.environ,
        "OMP_NUM_THREADS": str(min(threads, int(os.environ.get("OMP_NUM_THREADS") or threads))),
        "PYTHONUNBUFFERED": "1",
        STOP_FILE: str(directory / "stop"),
        LAUNCHER: str(os.getpid()),
    }


@contextlib.contextmanager
def _stopping(child: subprocess.Popen[str], stop: Path) -> Iterator[None]:
    """While inside, SIGTERM or Ctrl-C asks the training to save and stop; a second Ctrl-C, or an exception, ends it at once."""

    def ask(number: int, *_: Any) -> None:
        if number == signal.SIGINT and stop.exists():
            raise KeyboardInterrupt
        stop.touch()

    stop.unlink(missing_ok=True)
    listens = threading.current_thread() is threading.main_thread()
    asking = (signal.SIGTERM, signal.SIGINT) if listens else ()
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _relayed(child: subprocess.Popen[str], log: Path) -> list[str]:
    """Prints the lines meant for people, writes all of them to `log`, and returns the last ones."""
    last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    with log.open("w", encoding="utf-8") as file:
        for line in child.stdout or ():
            # Another process may have begun a line of its own in front of the mark.
            other, mark, shown = line.partition(SHOWN)
            file.write(f"{other}\n{shown}" if other and mark else other + shown)
            file.flush()
            last.append((other + shown).rstrip())
            if mark:
                print(shown, end="", file=sys.stderr, flush=True)
    return list(last)


def _conclude(code: int, directory: Path, last: list[str]) -> None:
    if code == 0:
        return
    refusal = directory / "refusal.json"
    if refusal.exists():
        raise InputError(**json.loads(refusal.read_text(encoding="utf-8")))
    if (directory / "stop").exists():
        raise SystemExit(EXIT_STOPPED)
    failure, left = directory / FAILURE, {"crash": Crash.PASSING, "text": "\n".join(last)}
    if failure.exists():  # Else no process failed by itself: one was killed.
        left = json.loads(failure.read_text(encoding="utf-8"))
    raise ProcessFailedError(f"a training process failed:\n{left['text'].rstrip()}", Crash(left["crash"]))


class _Shown(io.TextIOBase):
    """Standard error of a training process: marks its lines, so that the step shows them.

    All processes write to one pipe: a line is written when it is complete, at once, so that no other gets into it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._begun = stream, ""

    def write(self, text: str) -> int:
        """Writes the lines that `text` completes, with a mark before each."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._stream.write(f"{SHOWN}{line}\n")
        return len(text)

    def flush(self) -> None:
        """Passes everything on."""
        self._stream.flush()


def main(module: str, job_file: str) -> int:
    """Runs one training process; returns its exit code."""
    threading.Thread(target=_end_with, args=(int(os.environ[LAUNCHER]),), daemon=True).start()
    path, errors = Path(job_file), sys.stderr
    if os.environ["RANK"] == "0":
        sys.stderr = _Shown(errors)  # type: ignore[assignment]
    try:
        importlib.import_module(module).work(json.loads(path.read_text(encoding="utf-8")))
    except InputError as error:
        files.write_json(path.with_name("refusal.json"), error.fields())
        return EXIT_BAD_INPUT
    except Exception as error:
        traceback.print_exc(file=errors)
        _leave(error, path.with_name(FAILURE))
        return 1
    return 0


def _leave(error: Exception, failure: Path) -> None:
    """Writes the failure, at once and whole, unless another process has: later failures follow from the first."""
    own = failure.with_suffix(f".{os.getpid()}")
    files.write_json(own, {"crash": crash_of(error), "text": "".join(traceback.format_exception(error))})
    with contextlib.suppress(FileExistsError):
        os.link(own, failure)


def _end_with(launcher: int) -> None:
    """Ends this process when the step that started it is gone: an orphan must not go on writing checkpoints."""
    while True:
        try:
            os.kill(launcher, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1)


if __name__ == "__main__":
    ended_with = main(*sys.argv[1:])
    # Taking down the interpreter below the threads of gloo, NCCL and DeepSpeed aborts a process now and then, when all is done.
    atexit._run_exitfuncs()
    for written in (sys.stdout, sys.stderr):
        written.flush()
    os._exit(ended_with)
