"""Vectors of an earlier index, for the passages of a changed corpus that did not change.

A passage is the same if its title and text are; its id and its place in the corpus may be others. The vector that is taken
over was computed in another batch: it equals what would be computed now to rounding, not to the bit. Therefore shards that
were encoded this way have another name than others (`encoding_key`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever import files
from llm_retriever.collection import Collection, Passage
from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing.places import LocalShards
from llm_retriever.indexing.shards import Manifest
from llm_retriever.settings import EncodingSettings

DIGEST = np.dtype([("high", np.uint64), ("low", np.uint64)])
SAME = ("passage_length", "precision", "dtype")


@dataclass(frozen=True)
class Earlier:
    """Where an earlier index and the collection that it was made of lie.

    Attributes:
        index: An output of `build_index`.
        collection: The collection of that index.
    """

    index: Path
    collection: Path

    def digest(self) -> str:
        """SHA-256 (hex) over the vectors and whose they are."""
        manifest = Manifest.load(self.index)
        return files.digest([manifest.collection, [shard.sha256 for shard in manifest.shards]])

    def open(self, encoder: Encoder, settings: EncodingSettings) -> EarlierVectors:
        """The vectors, for an encoder and resolved settings.

        Raises:
            InputError: The index was made by another encoder, with other settings or of another collection.
        """
        manifest, collection = Manifest.load(self.index), Collection.open(self.collection)
        found: dict[str, Any] = {"encoder": manifest.card, "collection": manifest.collection}
        wanted: dict[str, Any] = {"encoder": encoder.identity(), "collection": collection.fingerprint}
        found |= {name: manifest.settings.get(name) for name in SAME}
        wanted |= {name: getattr(settings, name) for name in SAME}
        other = next((name for name in found if found[name] != wanted[name]), None)
        if other:
            mend = "give an index of the same retriever and settings, and its own collection"
            raise InputError(f"the earlier index has another {other}", file=self.index, field=other, mend=mend)
        return EarlierVectors(manifest, self.index, collection)


class EarlierVectors:
    """Vectors by passage; takes 24 bytes of memory a passage, while the vectors stay on disk.

    Args:
        manifest: Of the index.
        index: Where it lies.
        collection: What it was made of.
    """

    def __init__(self, manifest: Manifest, index: Path, collection: Collection) -> None:
        self._shards = LocalShards(manifest, index)
        self._matrices = [s.matrix(self._shards.directory, manifest.dimension, manifest.dtype) for s in manifest.shards]
        self._starts = np.cumsum([0, *(shard.count for shard in manifest.shards)])
        digests = _digests(collection.passages(), manifest.count)
        self._order = np.argsort(digests, order=("high", "low"), kind="stable")
        self._high, self._low = (digests[name][self._order] for name in ("high", "low"))

    def positions(self, passages: Sequence[Passage]) -> NDArray[np.int64]:
        """Where the passages stood in the earlier collection; -1 = it had no such passage."""
        wanted = _digests(passages, len(passages))
        at = np.minimum(np.searchsorted(self._high, wanted["high"]), len(self._high) - 1)
        # Two digests whose high halves are the same are not expected in any corpus; such a passage is encoded anew.
        same = (self._high[at] == wanted["high"]) & (self._low[at] == wanted["low"])
        return np.where(same, self._order[at], -1)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Vectors at some positions, [positions, dimension], in the stored type."""
        found = np.empty((len(positions), self._matrices[0].shape[1]), self._matrices[0].dtype)
        shards = np.searchsorted(self._starts, positions, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._matrices[shard][positions[here] - self._starts[shard]]
        return found


def _digests(passages: Iterable[Passage], count: int) -> NDArray[Any]:
    """128 bits a passage, over title and text."""
    found = bytearray()
    for passage in passages:
        told = f"{len(passage.title)}:{passage.title}{passage.text}".encode()
        found += hashlib.blake2b(told, digest_size=16).digest()
    if len(found) != 16 * count:
        raise InputError(f"the collection has {len(found) // 16} passages, not {count}", mend="prepare it again")
    return np.frombuffer(found, DIGEST)
