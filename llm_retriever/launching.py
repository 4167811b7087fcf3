"""Starting a training in this process or, through torchrun, in several; how its errors and its end come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def resolve_processes(wanted: int) -> int:
    """Training processes: `wanted`, or one per visible GPU and at least one where it is 0."""
    import torch

    return wanted or max(1, torch.cuda.device_count())


def launch(module: str, job: dict[str, Any], directory: Path, *, processes: int, deepspeed: str = "off") -> None:
    """Calls `work(job)` of `module`, in this process or in several.

    With one process and without DeepSpeed the call is made here. Otherwise `torchrun --standalone` starts the processes,
    each of which calls `work(job)`; rank 0 shows progress; the whole log is `training.log` in `directory`.

    Args:
        module: Dotted name of a module with `work(job: dict) -> None`.
        job: JSON values.
        directory: A scratch directory that exists.
        processes: As `resolve_processes` gives it.
        deepspeed: `off`, `zero1`, `zero2` or `zero3`.

    Raises:
        InputError: A process raised it; the same line.
        RuntimeError: A process failed otherwise; with the last lines of the log.
        SystemExit: 143, after SIGTERM, when the processes have saved a checkpoint and stopped.
    """
    raise NotImplementedError
