"""Classifies crashes: whether the same work, started again, may succeed.

Exceptions are told apart by name and message, because most steps load no torch and no HTTP client; our own carry a `crash`.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from collections.abc import Iterator

RESTARTED = "LLM_RETRIEVER_RESTARTED"
"""Environment variable: this work was begun before, with the same inputs, and has crashed."""


class Crash(enum.StrEnum):
    """A kind of crash.

    Attributes:
        PASSING: A lost process, connection or device: the next attempt may meet none of it.
        MEMORY: Memory ran out, of a GPU or of the machine: the next attempt may ask for less.
        LASTING: Anything else, as a mistake in the program: the next attempt would end the same way.
    """

    PASSING = "passing"
    MEMORY = "memory"
    LASTING = "lasting"


class ProcessFailedError(RuntimeError):
    """A process that did a share of the work has failed.

    Args:
        message: What is known of it.
        crash: Of which kind its failure is; that of a process which was killed passes.
    """

    def __init__(self, message: str, crash: Crash = Crash.PASSING) -> None:
        super().__init__(message)
        self.crash = crash


class TransferError(OSError):
    """A transfer has failed, after the client's own attempts."""

    crash = Crash.PASSING


LOST_PEER = re.compile(
    r"(closed|reset) by peer|Broken pipe|remote process exited|ncclRemoteError|DistNetworkError|got 0 bytes"
    r"|RendezvousConnectionError|RendezvousTimeoutError",
    re.IGNORECASE,
)
"""What gloo, NCCL and torchrun say in a process whose peer has ended."""
_LOST = re.compile(
    r"CUDA error|CUDA driver error|CUBLAS_STATUS|cuDNN error|CUDNN_STATUS|NCCL|gloo|Timed out waiting"
    r"|DataLoader worker .*(is killed by signal|exited unexpectedly)"
)
"""What torch says in a plain RuntimeError of a device, of another process or of the way between them."""
_FULL = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|CUBLAS_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
_CLASSES = {
    ("torch", "AcceleratorError"),
    ("torch", "DistError"),
    ("botocore", "ConnectionError"),
    ("botocore", "HTTPClientError"),
    ("botocore", "IncompleteReadError"),
    ("builtins", "ConnectionError"),
    ("builtins", "TimeoutError"),
    ("concurrent", "BrokenExecutor"),
    ("http", "IncompleteRead"),
    ("httpcore", "NetworkError"),
    ("httpx", "TransportError"),
    ("requests", "ChunkedEncodingError"),
    ("requests", "ConnectionError"),
    ("requests", "Timeout"),
    ("urllib3", "HTTPError"),
}
"""First part of the module and name of exception classes that speak of a lost process, connection or device."""
_NUMBERS = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH} | {
    errno.EHOSTDOWN,
    errno.ENOTCONN,
    errno.EREMOTEIO,
}
"""Errors of a disk behind a network. A full disk (ENOSPC) is not among them: it would be full again."""


def crash_of(error: BaseException) -> Crash:
    """Classifies an exception, or the one that it was raised from."""
    kinds = [_own_kind(cause) for cause in _causes(error)]
    return next((kind for kind in (Crash.MEMORY, Crash.PASSING) if kind in kinds), Crash.LASTING)


def was_restarted() -> bool:
    """Whether an earlier attempt with the same inputs has crashed: what was reachable once may only be away for now."""
    return bool(os.environ.get(RESTARTED))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _own_kind(error: BaseException) -> Crash:
    known = getattr(error, "crash", None)
    if isinstance(known, Crash):
        return known
    classes = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    text = str(error) if isinstance(error, RuntimeError) else ""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or ("torch", "OutOfMemoryError") in classes or number == errno.ENOMEM:
        return Crash.MEMORY
    if _FULL.search(text):
        return Crash.MEMORY
    if classes & _CLASSES or number in _NUMBERS or LOST_PEER.search(text) or _LOST.search(text):
        return Crash.PASSING
    return Crash.LASTING
