"""Reuses vectors of an earlier index for the unchanged passages of a changed corpus (see `indexing.passages`).

The vector that is taken over was computed in another batch: it equals what would be computed now to rounding, not to the bit.
Therefore shards that were encoded this way have another name than others (`encoding_key`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever import files
from llm_retriever.data.collection import Passage
from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing.passages import Digests, digests, read_passages, unlisted
from llm_retriever.indexing.shard_store import LocalShards, complete
from llm_retriever.indexing.shards import HINT, Manifest
from llm_retriever.progress import Progress
from llm_retriever.settings import EncodingSettings

SAME = ("passage_length", "precision")
AT_ONCE = 2**20


@dataclass(frozen=True)
class Earlier:
    """An earlier index.

    Attributes:
        index: An output of `build_index`, whose manifest names the digests of its passages.
    """

    index: Path

    def digest(self) -> str:
        """SHA-256 (hex) over the vectors and whose they are."""
        manifest = Manifest.load(self.index)
        listed = manifest.passages.sha256 if manifest.passages else manifest.collection
        return files.digest([listed, [shard.sha256 for shard in manifest.shards]])

    def check(self, encoder: Encoder, settings: EncodingSettings) -> None:
        """Raises InputError unless the vectors are those of an encoder and resolved settings; reads the manifest alone.

        Raises:
            InputError: The index was made by another encoder or with other settings, or does not know its passages.
        """
        manifest = Manifest.load(self.index)
        found: dict[str, Any] = {"encoder": manifest.card, "dtype": manifest.dtype, "dimension": manifest.dimension}
        wanted: dict[str, Any] = {name: getattr(settings, name) for name in ("dtype", "dimension")}
        wanted["encoder"] = encoder.identity()
        found |= {name: manifest.settings.get(name) for name in SAME}
        wanted |= {name: getattr(settings, name) for name in SAME}
        other = next((name for name in found if found[name] != wanted[name]), None)
        if other:
            hint = "give an index of the same retriever and settings"
            raise InputError(f"the earlier index has another {other}", file=self.index, field=other, hint=hint)
        if manifest.passages is None:
            raise unlisted(self.index)

    def open(self, encoder: Encoder, settings: EncodingSettings) -> EarlierVectors:
        """Opens the vectors, for an encoder and resolved settings; errors are those of `check`."""
        self.check(encoder, settings)
        return EarlierVectors(Manifest.load(self.index), self.index)

    @contextlib.contextmanager
    def at_hand(self) -> Iterator[Earlier]:
        """Yields the same index with all its shards in one local directory, compared with their checksums.

        Raises:
            InputError: A shard is missing or was changed.
        """
        with complete(self.index) as index:
            _check_shards(index, Manifest.load(index))
            yield Earlier(index)


def _check_shards(index: Path, manifest: Manifest) -> None:
    with Progress("check the earlier index", manifest.count, "vectors") as progress:
        for shard in manifest.shards:
            if not shard.is_intact(index):
                raise InputError("does not have its checksum", file=index / shard.file, hint=HINT)
            progress.update(shard.count)


class EarlierVectors:
    """Vectors by passage; takes 24 bytes of memory a passage, while the vectors stay on disk.

    Args:
        manifest: Manifest of the index.
        index: Where it lies.

    Raises:
        InputError: The index does not say which passages it holds.
    """

    def __init__(self, manifest: Manifest, index: Path) -> None:
        self._manifest, self._index = manifest, index
        self._starts = np.cumsum([0, *(shard.count for shard in manifest.shards)])
        listed = read_passages(index, manifest.passages, manifest.count)
        self._order = np.argsort(listed[:, 0], kind="stable")
        self._high, self._low = listed[:, 0][self._order], listed[:, 1][self._order]

    @functools.cached_property
    def _shards(self) -> LocalShards:
        return LocalShards(self._manifest, self._index)

    @functools.cached_property
    def _matrices(self) -> list[NDArray[Any]]:
        dimension, dtype = self._manifest.dimension, self._manifest.dtype
        return [shard.matrix(self._shards.directory, dimension, dtype) for shard in self._manifest.shards]

    def positions(self, passages: Sequence[Passage]) -> NDArray[np.int64]:
        """Positions of the passages in the earlier index; -1 = it has no such passage."""
        return self._positions(digests(passages))

    def _positions(self, listed: Digests) -> NDArray[np.int64]:
        at = np.minimum(np.searchsorted(self._high, listed[:, 0]), len(self._high) - 1)
        # Two digests whose high halves are the same are not expected in any corpus; such a passage is encoded anew.
        same = (self._high[at] == listed[:, 0]) & (self._low[at] == listed[:, 1])
        return np.where(same, self._order[at], -1)

    def known(self, listed: Digests) -> int:
        """Counts the passages, given by their digests, uint64 [passages, 2], that the earlier index has."""
        parts = (listed[at : at + AT_ONCE] for at in range(0, len(listed), AT_ONCE))
        return sum(int(np.count_nonzero(self._positions(part) >= 0)) for part in parts)

    def vectors(self, positions: NDArray[np.int64]) -> NDArray[Any]:
        """Reads vectors at some positions as they are stored, [positions, row_width]."""
        vectors = np.empty((len(positions), self._matrices[0].shape[1]), self._matrices[0].dtype)
        shards = np.searchsorted(self._starts, positions, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            vectors[here] = self._matrices[shard][positions[here] - self._starts[shard]]
        return vectors
