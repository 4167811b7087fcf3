"""Sends a corpus through the model window by window: tokenised ahead, written behind, resumable per shard.

Two cuts lie over the positions of the passages. *Windows* of 4096 passages are what is sorted by length and put into
batches together. *Shards* are the files; their number and size is a setting. Windows start at multiples of their size,
wherever shards begin and end: so a passage is always in a batch with the same others, and its vector has the same bits
in whatever shard, process or part. (Padding changes a vector's last bits, and which kernels run depends on the shape of a
batch. The same bits are promised for the same kind of processor or GPU, libraries and threads per process.) A window
that a border cuts is encoded on both sides of it; with a shard size that is a multiple of the window's there is none.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever.data.collection import Collection, Passage
from llm_retriever.encoders.batched import check_finite
from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing.shard_store import Place
from llm_retriever.indexing.shards import Shard
from llm_retriever.indexing.stored import DTYPES, decoded, encoded, first_numbers, row_width
from llm_retriever.indexing.vector_reuse import Earlier, EarlierVectors
from llm_retriever.indexing.writing import Piece, ShardWriter
from llm_retriever.processes.prefetch import prefetched
from llm_retriever.settings import EncodingSettings

WINDOW_PASSAGES = 4096
"""Passages that are sorted by length together: enough for hardly any padding, few enough to be held in memory."""
PASSAGES_AT_ONCE = 256

Encoded = Callable[[int, int], None]
"""Called after each batch: passages of the shards to write that were encoded, and tokens."""


@dataclass(frozen=True)
class Cut:
    """A corpus in shards and windows.

    Attributes:
        passages: How many there are.
        shard_passages: Passages per shard; the last one may hold fewer.
        window_passages: Passages per window.

    Example:
        >>> cut = Cut(passages=10, shard_passages=4, window_passages=3)
        >>> cut.shards, cut.shard(2), cut.windows([1])
        (3, range(8, 10), [range(3, 6), range(6, 9)])
        >>> cut.overlapping(range(3, 6))
        range(0, 2)
    """

    passages: int
    shard_passages: int
    window_passages: int

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.passages // self.shard_passages)

    def shard(self, number: int) -> range:
        """Positions of a shard's passages."""
        return self._span(number, self.shard_passages)

    def windows(self, shards: Iterable[int]) -> list[range]:
        """Windows that some shards touch, in order."""
        size = self.window_passages
        touched = {n for s in shards for n in range(self.shard(s).start // size, -(-self.shard(s).stop // size))}
        return [self._span(number, size) for number in sorted(touched)]

    def overlapping(self, window: range) -> range:
        """Numbers of the shards that hold passages of a window."""
        return range(window.start // self.shard_passages, -(-window.stop // self.shard_passages))

    def _span(self, number: int, size: int) -> range:
        return range(number * size, min((number + 1) * size, self.passages))


def share(numbers: Sequence[int], index: int, of: int) -> list[int]:
    """Picks one worker's share: fixed beforehand, so that it is the same after a kill and on another machine.

    >>> share(range(7), 1, of=3)
    [1, 4]
    """
    return list(numbers[index::of])


@dataclass(frozen=True)
class Window:
    """Consecutive passages of the corpus, tokenised.

    Attributes:
        span: Their positions.
        ids: Their ids.
        rows: Their token ids, 4 bytes each; empty where the vector is known.
        known: Their positions in an earlier index; -1 = to be encoded.
    """

    span: range
    ids: list[str]
    rows: list[array[int]]
    known: NDArray[np.int64]


def encode_shards(
    encoder: Encoder,
    collection: Collection,
    cut: Cut,
    shards: Sequence[int],
    place: Place,
    settings: EncodingSettings,
    report: Encoded = lambda passages, tokens: None,
    earlier: Earlier | None = None,
) -> dict[int, Shard]:
    """Encodes some shards and writes their vectors. Memory does not grow with the corpus.

    Args:
        encoder: Encodes.
        collection: Its passages keep their order.
        cut: How the corpus is cut.
        shards: Numbers of the shards to write, ascending.
        place: Takes them.
        settings: As resolved: passage length, tokens per batch, dimension, stored type.
        report: Called after each batch.
        earlier: An index from which the vectors of unchanged passages are taken.

    Returns:
        The shards, by number.

    Raises:
        InputError: A vector is not finite in the stored type, or the collection has not as many passages as it says.
    """
    own, since = frozenset(shards), time.monotonic()
    taken = earlier.open(encoder, settings) if earlier else None
    windows = prefetched(_windows(encoder, collection, cut.windows(shards), settings.passage_length, taken))
    with contextlib.closing(windows), ShardWriter(place) as writer:
        for window in windows:
            mine = [(number, _common(window.span, cut.shard(number))) for number in cut.overlapping(window.span)]
            mine = [(number, span) for number, span in mine if number in own]
            vectors, slots = _encode(encoder, window, [span for _, span in mine], settings, report, taken)
            seconds, since = time.monotonic() - since, time.monotonic()
            seconds_each = seconds / sum(len(span) for _, span in mine)
            for number, span in mine:
                writer.add(_piece(window, span, number, len(cut.shard(number)), vectors, slots, seconds_each))
    return writer.shards


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _piece(
    window: Window,
    span: range,
    shard: int,
    count: int,
    vectors: NDArray[Any],
    slots: NDArray[np.float64],
    seconds_each: float,
) -> Piece:
    rows = slice(span.start - window.span.start, span.stop - window.span.start)
    tokens = sum(map(len, window.rows[rows]))
    padded = round(float(slots[rows].sum()))
    return Piece(shard, count, vectors[rows], window.ids[rows], tokens, padded, seconds_each * len(span))


def _windows(
    encoder: Encoder, collection: Collection, spans: Sequence[range], length: int, earlier: EarlierVectors | None
) -> Iterator[Window]:
    """Reads and tokenises the windows at some positions."""
    for span, taken in zip(spans, collection.spans(spans), strict=True):
        if len(taken) < len(span):
            raise InputError(
                f"the collection ends {span.stop - span.start - len(taken)} passages early",
                file=collection.directory,
                hint="prepare the collection again",
            )
        known = earlier.positions(taken) if earlier else np.full(len(taken), -1)
        rows = [array("i") for _ in taken]
        new = np.flatnonzero(known < 0)
        for position, row in zip(new, _tokenised(encoder, [taken[i] for i in new], length), strict=True):
            rows[position] = row
        yield Window(span, [passage.id for passage in taken], rows, known)


def _tokenised(encoder: Encoder, passages: list[Passage], length: int) -> list[array[int]]:
    """Tokenises into 4 bytes an id; a few passages at a time, because a tokenizer's answer takes 40 times as much."""
    parts = (passages[i : i + PASSAGES_AT_ONCE] for i in range(0, len(passages), PASSAGES_AT_ONCE))
    limit = length if length > 0 else None
    return [array("i", row) for part in parts for row in encoder.tokenise_passages(part, length=limit)]


def _encode(
    encoder: Encoder,
    window: Window,
    mine: Sequence[range],
    settings: EncodingSettings,
    report: Encoded,
    earlier: EarlierVectors | None,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Returns vectors as they are stored, [passages, row_width], and the tokens that each took, padding included."""
    counted = np.zeros(len(window.ids), dtype=bool)
    for span in mine:
        counted[span.start - window.span.start : span.stop - window.span.start] = True
    slots, new = np.zeros(len(window.ids)), np.flatnonzero(window.known < 0)

    def encoded_batch(batch: Sequence[int], padded: int) -> None:
        positions = new[batch]
        slots[positions] = padded / len(positions)
        report(int(counted[positions].sum()), sum(len(window.rows[i]) for i in positions))

    dimension, dtype = settings.dimension, settings.dtype
    stored = np.empty((len(window.ids), row_width(dtype, dimension)), DTYPES[dtype])
    if len(new):
        vectors = encoder.encode_rows("passage", [window.rows[i] for i in new], settings.batch_tokens, encoded_batch)
        stored[new] = encoded(first_numbers(vectors, dimension, normalised=encoder.normalised), dtype)
    if earlier and len(new) < len(stored):
        old = np.flatnonzero(window.known >= 0)
        stored[old] = earlier.vectors(window.known[old])
        report(int(counted[old].sum()), 0)
    check_finite(decoded(stored), [f"passage {passage_id!r}" for passage_id in window.ids])
    return stored, slots
