"""Prefetching: a thread makes the next items of an iterator while the last one is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(items: Iterable[Item], depth: int = 2) -> Generator[Item]:
    """Runs an iterator in a thread of its own, at most `depth` items ahead; its exception comes through.

    Example:
        >>> list(prefetched(range(3)))
        [0, 1, 2]
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = deque(thread.submit(next, iterator, end) for _ in range(depth))
        try:
            while (item := ahead.popleft().result()) is not end:
                ahead.append(thread.submit(next, iterator, end))
                yield item  # type: ignore[misc]  # It is not `end`.
        finally:
            thread.shutdown(cancel_futures=True)
