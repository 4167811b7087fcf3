"""A corpus through the model, shard by shard: tokenised ahead of the model, written atomically, resumable per shard."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import queue
import threading
import time
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from llm_retriever import files
from llm_retriever.collection import Collection, Passage
from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import DTYPES, Shard, write_ids
from llm_retriever.progress import Progress
from llm_retriever.retriever import Retriever, refuse_non_finite
from llm_retriever.settings import IndexSettings

WINDOW_PASSAGES = 4096
"""Passages that are sorted by length together: enough for hardly any padding, few enough to be held in memory."""
PASSAGES_AT_ONCE = 256

Item = TypeVar("Item")


@dataclass(frozen=True)
class Window:
    """Consecutive passages of one shard, tokenised."""

    ids: list[str]
    rows: list[array[int]]


@dataclass
class Cost:
    """What went through the model so far, in this run."""

    tokens: int = 0
    slots: int = 0
    started: float = dataclasses.field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Wall-clock time since the start."""
        return time.monotonic() - self.started


def encode_corpus(
    retriever: Retriever, collection: Collection, directory: Path, settings: IndexSettings
) -> tuple[Shard, ...]:
    """Writes the vectors of all passages as shards into `directory`.

    Shards that an earlier run with the same arguments finished there are kept; the first missing one comes next. Memory
    does not grow with the corpus.

    Args:
        retriever: Encodes.
        collection: Its passages keep their order.
        directory: Exists; belongs to this retriever, collection and settings alone.
        settings: Passage length, tokens per batch, passages per shard, stored type.

    Returns:
        The shards, in order.

    Raises:
        InputError: A vector is not finite in the stored type, or the collection has not as many passages as it says.
    """
    total = collection.passage_count
    counts = [min(settings.shard_passages, total - start) for start in range(0, total, settings.shard_passages)]
    shards = finished_shards(directory, counts)
    done = sum(shard.count for shard in shards)
    passages = itertools.islice(collection.passages(), done, None)
    windows = ahead(_windows(retriever, passages, counts[len(shards) :], settings.passage_length))
    with contextlib.closing(windows), Progress("encode passages", total, "passages", done=done) as progress:
        for number in range(len(shards), len(counts)):
            shards.append(_write_shard(retriever, windows, directory, number, counts[number], settings, progress))
    return tuple(shards)


def finished_shards(directory: Path, counts: Sequence[int]) -> list[Shard]:
    """The first shards of a directory, as far as they are whole; whatever else lies there is removed."""
    shards: list[Shard] = []
    for number, count in enumerate(counts):
        shard = _finished(directory, number)
        if shard is None or shard.count != count or not shard.is_intact(directory):
            break
        shards.append(shard)
    kept = {name for i, shard in enumerate(shards) for name in (shard.file, shard.ids, _record(i))}
    for path in directory.iterdir():
        if path.name not in kept:
            path.unlink()
    return shards


def _record(number: int) -> str:
    return f"shard-{number:05d}.json"


def _finished(directory: Path, number: int) -> Shard | None:
    try:
        return TypeAdapter(Shard).validate_python(files.read_json(directory / _record(number)))
    except (InputError, ValidationError):
        return None


def _windows(retriever: Retriever, passages: Iterator[Passage], counts: Sequence[int], length: int) -> Iterator[Window]:
    """Tokenises the passages, window by window; no window reaches over the end of a shard."""
    for number, count in enumerate(counts):
        for start in range(0, count, WINDOW_PASSAGES):
            size = min(WINDOW_PASSAGES, count - start)
            taken = list(itertools.islice(passages, size))
            if len(taken) < size:
                raise InputError(
                    f"the collection ends {size - len(taken)} passages early in shard {number}",
                    mend="prepare the collection again",
                )
            yield Window([passage.id for passage in taken], _tokenised(retriever, taken, length))


def _tokenised(retriever: Retriever, passages: list[Passage], length: int) -> list[array[int]]:
    """Token ids in 4 bytes each; a few passages at a time, because a tokenizer's answer takes 40 times as much."""
    parts = (passages[i : i + PASSAGES_AT_ONCE] for i in range(0, len(passages), PASSAGES_AT_ONCE))
    limit = length if length > 0 else None
    return [array("i", row) for part in parts for row in retriever.tokenise_passages(part, length=limit)]


def _write_shard(
    retriever: Retriever,
    windows: Iterator[Window],
    directory: Path,
    number: int,
    count: int,
    settings: IndexSettings,
    progress: Progress,
) -> Shard:
    """Encodes one shard; its record is written last, so that a shard with a record is whole."""
    file, ids_file = f"vectors-{number:05d}.npy", f"ids-{number:05d}.txt"
    cost, ids, largest = Cost(), list[str](), 0.0
    with files.atomic_file(directory / file) as draft:
        shape = (count, retriever.dimension)
        matrix = np.lib.format.open_memmap(draft, "w+", dtype=DTYPES[settings.dtype], shape=shape)
        while len(ids) < count:
            window = next(windows)
            vectors = _encode(retriever, window, settings, cost, progress)
            largest = max(largest, float(np.linalg.norm(vectors.astype(np.float32), axis=1).max()))
            matrix[len(ids) : len(ids) + len(window.ids)] = vectors
            ids += window.ids
        matrix.flush()
        del matrix
    write_ids(directory / ids_file, ids)
    digests = files.sha256_of_file(directory / file), files.sha256_of_file(directory / ids_file)
    shard = Shard(file, ids_file, count, *digests, largest, cost.tokens, cost.slots, round(cost.seconds(), 3))
    files.write_json(directory / _record(number), dataclasses.asdict(shard))
    return shard


def _encode(
    retriever: Retriever, window: Window, settings: IndexSettings, cost: Cost, progress: Progress
) -> NDArray[Any]:
    """Vectors of a window in the stored type, in its order."""

    def report(batch: Sequence[int], slots: int) -> None:
        cost.tokens += sum(len(window.rows[i]) for i in batch)
        cost.slots += slots
        progress.update(len(batch), **{"tokens/s": f"{cost.tokens / max(cost.seconds(), 1e-9):,.0f}"})

    vectors = retriever.encode_rows("passage", window.rows, settings.batch_tokens, report)
    with np.errstate(over="ignore"):
        stored = vectors.astype(DTYPES[settings.dtype])
    refuse_non_finite(stored, [f"passage {passage_id!r}" for passage_id in window.ids])
    return stored


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item]:
    """Runs an iterator in a thread of its own, at most `depth` items ahead; its exception comes through.

    Example:
        >>> list(ahead(range(3)))
        [0, 1, 2]
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def offer(kind: str, value: Any = None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((kind, value), timeout=0.1)
                return

    def work() -> None:
        try:
            for item in items:
                offer("item", item)
                if stopped.is_set():
                    return
            offer("end")
        except BaseException as error:  # Whatever it is, it is raised where the items are used.
            offer("error", error)

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
