"""Cuts a corpus so that several can encode it and the vectors do not depend on how many.

Two cuts lie over the positions of the passages. *Windows* of 4096 passages are what is sorted by length and put into
batches together. *Shards* are the files; their number and size is a setting. Windows start at multiples of their size,
wherever shards begin and end: so a passage is always in a batch with the same others, and its vector has the same bits
in whatever shard, process or part. (Padding changes a vector's last bits, and which kernels run depends on the shape of a
batch. The same bits are promised for the same kind of processor or GPU, libraries and threads per process.) A window
that a border cuts is encoded on both sides of it; with a shard size that is a multiple of the window's there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.interface import Encoder
from llm_retriever.settings import EncodingSettings

WINDOW_PASSAGES = 4096
"""Passages that are sorted by length together: enough for hardly any padding, few enough to be held in memory."""
FORMAT = 1


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


def encoding_key(encoder: Encoder, collection: Collection, settings: EncodingSettings, earlier: str = "") -> str:
    """Names shards by a SHA-256 (hex) over all that decides their bytes, and nothing else.

    Args:
        encoder: Its identity counts.
        collection: Its fingerprint counts.
        settings: As resolved.
        earlier: Digest of the index from which vectors are taken over, if any.
    """
    decisive = ("passage_length", "batch_tokens", "shard_passages", "dtype", "dimension", "precision")
    values = {name: getattr(settings, name) for name in decisive}
    content = [FORMAT, WINDOW_PASSAGES, encoder.identity(), collection.fingerprint, values, earlier]
    return files.digest(content)
