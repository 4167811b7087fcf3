"""Runs programs whose output may be read in part, as by `head`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable


def run(main: Callable[[], int]) -> int:
    """Calls the main function of a program that prints answers, and returns its exit code.

    A reader of the standard output that goes away has read enough: that ends the program, and is no error. A connection that
    breaks elsewhere stays the error that it is.
    """
    try:
        try:
            return main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_closed(sys.stdout.fileno()):
            raise
        # Python would try to write the rest when it ends, and complain.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return 0


def _is_closed(descriptor: int) -> bool:
    looking = select.poll()
    looking.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in looking.poll(0))
