"""Items come in order, are made ahead but not without bound, and the thread ends with its reader."""

from __future__ import annotations

import doctest
import itertools
import threading
import time

import pytest

from llm_retriever.errors import InputError
from llm_retriever.processes import prefetch
from llm_retriever.processes.prefetch import prefetched


def test_an_exception_comes_through_after_the_items_before_it():
    def items():
        yield 1
        raise InputError("the second is broken")

    found = prefetched(items())
    assert next(found) == 1
    with pytest.raises(InputError, match="the second is broken"):
        next(found)


def test_the_reading_thread_ends_when_its_reader_does():
    ended = []

    def items():
        try:
            yield from itertools.count()
        finally:
            ended.append(threading.current_thread().name)

    found = prefetched(items())
    assert next(found) == 0
    found.close()
    assert len(ended) == 1
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_as_many_items_as_asked_are_made_ahead():
    made = []
    found = prefetched((made.append(i) or i for i in itertools.count()), depth=3)
    assert next(found) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    found.close()


def test_the_documented_example_runs():
    results = doctest.testmod(prefetch)
    assert results.attempted > 0
    assert results.failed == 0
