"""What the process does with the memory that it frees."""

from __future__ import annotations

import contextlib
import ctypes

_THRESHOLDS = (-1, -3)
"""Of glibc's mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
_KEPT = 1 << 30
"""Bytes."""


def keep_memory() -> None:
    """Makes the C library keep up to a GiB of freed memory for the next batch, where it is glibc.

    It hands free memory at the end of its heap back to the system and asks for it anew: a fifth of encoding on a processor.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        for threshold in _THRESHOLDS:
            library.mallopt(threshold, _KEPT)
