"""Encodes in several processes: one for each GPU, or on a CPU each with its share of the threads.

This process is the first of them; it keeps the encoder that it has, shows the progress of all, and ends the others when
one fails. What each takes is fixed beforehand, so a worker needs nothing from the others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from llm_retriever.data.collection import Collection
from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing.encode import Cut, Encoded, encode_shards, share
from llm_retriever.indexing.shard_store import Place
from llm_retriever.indexing.shards import Shard
from llm_retriever.indexing.vector_reuse import Earlier
from llm_retriever.processes.crashes import Crash, ProcessFailedError, crash_of
from llm_retriever.processes.own_process import end_with_parent
from llm_retriever.settings import EncodingSettings

Load = Callable[..., Encoder]
"""Loads the encoder on a `device`; goes to another process, so it is a function of a module or a partial of one."""
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Work:
    """A process's share of the encoding.

    Attributes:
        collection: Directory of the collection.
        cut: How its passages are cut.
        shards: Numbers of the shards to write.
        place: Takes the shards.
        settings: As resolved.
        earlier: Where the vectors of unchanged passages are taken from.
    """

    collection: Path
    cut: Cut
    shards: tuple[int, ...]
    place: Place
    settings: EncodingSettings
    earlier: Earlier | None = None


def resolved_processes(requested: int, shards: int) -> int:
    """Number of encoding processes: `requested`, or one per visible GPU where it is 0; at most one a shard.

    Raises:
        InputError: There are GPUs, but fewer than processes are wanted.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and requested > gpus:
        raise InputError(f"{requested} processes for {gpus} GPUs", field="processes", hint=f"use {gpus} or fewer")
    return max(1, min(requested or gpus, shards))


def encode_in_processes(encoder: Encoder, load: Load, work: Work, processes: int, report: Encoded) -> dict[int, Shard]:
    """Encodes shards with several processes.

    Args:
        encoder: Encoder of this process; on the first GPU, if there is one.
        load: Loads the same encoder in the others.
        work: What all of them are to do together.
        processes: How many, this one included.
        report: Called in this process with what any of them encoded.

    Returns:
        The shards, by number.

    Raises:
        InputError: A process raised it.
        RuntimeError: A process failed otherwise, with its traceback, or was killed.
    """
    import torch

    threads = max(1, min(torch.get_num_threads(), len(os.sched_getaffinity(0)) // processes))
    others = [functools.partial(_work, load, _of(work, rank, processes), rank, threads) for rank in range(1, processes)]
    with _started(others) as team, _threads(threads):
        collection, mine = Collection.open(work.collection), _of(work, 0, processes)

        def report_all(passages: int, tokens: int) -> None:
            report(passages, tokens)
            team.listen(report)

        shards = encoded_shards(encoder, collection, mine, report_all)
        while team.connections:
            team.listen(report, SECONDS_BETWEEN_LOOKS)
    return shards | team.shards


def _of(work: Work, rank: int, processes: int) -> Work:
    return dataclasses.replace(work, shards=tuple(share(work.shards, rank, processes)))


def encoded_shards(encoder: Encoder, collection: Collection, work: Work, report: Encoded) -> dict[int, Shard]:
    """Encodes shards in this process alone; see `encode_shards`."""
    return encode_shards(encoder, collection, work.cut, work.shards, work.place, work.settings, report, work.earlier)


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Team:
    """The other processes, and their reports."""

    def __init__(self, processes: Sequence[BaseProcess], connections: Sequence[Connection]) -> None:
        self.processes = dict(zip(connections, processes, strict=True))
        self.connections, self.shards = list(connections), dict[int, Shard]()

    def listen(self, report: Encoded, seconds: float = 0.0) -> None:
        """Takes the reports that have come; waits for at most `seconds`."""
        for ready in wait(self.connections, seconds):
            connection = next(c for c in self.connections if c is ready)
            try:
                while connection.poll():
                    kind, content = connection.recv()
                    self._take(kind, content, report)
            except EOFError:
                self.connections.remove(connection)
                self._check_ended(self.processes[connection])

    def _take(self, kind: str, content: Any, report: Encoded) -> None:
        if kind == "encoded":
            report(*content)
        elif kind == "shards":
            self.shards |= content
        elif kind == "refused":
            raise InputError(**content)
        else:
            raise ProcessFailedError(f"an encoding process failed:\n{content[1].rstrip()}", Crash(content[0]))

    def _check_ended(self, process: BaseProcess) -> None:
        process.join()
        if process.exitcode:
            raise ProcessFailedError(
                f"an encoding process was ended (exit code {process.exitcode}); was there enough memory?"
            )


@contextlib.contextmanager
def _started(tasks: Sequence[Callable[[Connection], None]]) -> Iterator[_Team]:
    """Starts processes; none is left when the context ends."""
    # A forked process cannot use a GPU that its parent uses.
    context = multiprocessing.get_context("spawn")
    processes, connections = list[BaseProcess](), list[Connection]()
    try:
        for task in tasks:
            receiving, sending = context.Pipe(duplex=False)
            process: BaseProcess = context.Process(target=task, args=(sending,), daemon=True)
            process.start()
            sending.close()
            processes.append(process)
            connections.append(receiving)
        yield _Team(processes, connections)
    finally:
        for started in processes:
            started.terminate()
        for started in processes:
            started.join()


def _work(load: Load, work: Work, rank: int, threads: int, connection: Connection) -> None:
    """Runs one of the other processes, from its start to its end."""
    import torch

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    counts = collections.Counter[str]()
    since = time.monotonic()

    def report(passages: int, tokens: int) -> None:
        nonlocal since
        counts.update(passages=passages, tokens=tokens)
        if time.monotonic() - since >= SECONDS_BETWEEN_LOOKS:
            connection.send(("encoded", (counts["passages"], counts["tokens"])))
            counts.clear()
            since = time.monotonic()

    try:
        encoder = load(device=f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
        collection = Collection.open(work.collection)
        shards = encoded_shards(encoder, collection, work, report)
        connection.send(("encoded", (counts["passages"], counts["tokens"])))
        connection.send(("shards", shards))
    except InputError as error:
        connection.send(("refused", error.fields()))
    except Exception as error:
        connection.send(("failed", (crash_of(error), traceback.format_exc())))
    connection.close()
