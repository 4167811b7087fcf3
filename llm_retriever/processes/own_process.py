"""Calls a function in a process of its own: what it held in memory, on a GPU too, is free when it returns.

A stage that trains leaves state behind that the next one must not meet (the arithmetic of Accelerate, DeepSpeed's hooks),
and the most memory that a process has ever held is a figure of the evaluation.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NoReturn, TypeVar

from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import Crash, ProcessFailedError, crash_of

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls `function(*arguments)` in a new process and returns what it returns.

    When this process is asked to stop, so is the other one, and this one waits until it has: a training saves a checkpoint.

    Args:
        function: A module's function, so that the other process finds it.
        *arguments: Can be pickled, and so can the result.

    Raises:
        InputError: The function raised it.
        ProcessFailedError: It failed otherwise, with its traceback, or the process was killed.
        SystemExit: The function ended the process with this code.
    """
    # A forked process cannot use a GPU that its parent uses.
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(function, arguments, sending))
    process.start()
    sending.close()
    try:
        try:
            kind, content = receiving.recv()
        except EOFError:
            kind, content = "ended", None
        process.join()
    finally:
        process.terminate()
        process.join()
    return _concluded(function.__name__.strip("_"), kind, content, process.exitcode or 0)


def _concluded(name: str, kind: str, content: Any, code: int) -> Any:
    if kind == "returned":
        return content
    if kind == "refused":
        raise InputError(**content)
    if kind == "failed":
        raise ProcessFailedError(f"{name} failed:\n{content[1].rstrip()}", Crash(content[0]))
    if code > 0:
        raise SystemExit(code)
    raise ProcessFailedError(f"the process of {name} was killed (signal {-code}); was there enough memory?")


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], sending: Connection) -> None:
    """Runs in the other process, from its start to its end."""
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=end_with_parent, daemon=True).start()
    answer: tuple[str, Any]
    try:
        answer = ("returned", function(*arguments))
    except InputError as error:
        answer = ("refused", error.fields())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        answer = ("failed", (str(crash_of(error)), traceback.format_exc()))
    sending.send(answer)
    sending.close()


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone: an orphan must not go on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
