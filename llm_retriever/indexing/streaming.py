"""Reads the vectors of all shards as one long matrix: held in memory where it fits, else streamed block by block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import HINT, Manifest
from llm_retriever.indexing.stored import Floats, decoded
from llm_retriever.processes.prefetch import prefetched

Positions = NDArray[np.int64]

MEMORY_BYTES = 2**30
"""Vectors that are held in memory at most, whatever the size of the index."""
ALIGNMENT = 1024
"""FAISS multiplies 1,024 rows at a time: blocks that begin at its borders give the bits that one matrix would give."""
BUFFERS = 3
"""One block is searched, one waits, one is being read; what is left of the memory decodes what is stored otherwise."""
PIECE_ROWS = 8192


class ShardedVectors:
    """The vectors of an index, row by row as in the collection.

    Args:
        directory: Where the files of the shards lie.
        manifest: The manifest of the index.
        memory_bytes: Vectors that may be held in memory; a larger index is streamed from its files at every search.

    Attributes:
        count: Rows.
        dimension: Columns.
        starts: Position of the first row of each shard, and the count, int64 [shards + 1].
        block_rows: Rows of a block when streaming.

    Raises:
        InputError: A shard is missing, cut off, or of another shape or type.
    """

    def __init__(self, directory: Path, manifest: Manifest, memory_bytes: int = MEMORY_BYTES) -> None:
        self._directory, self._shards = directory, manifest.shards
        self.count, self.dimension = manifest.count, manifest.dimension
        self._mapped = [s.matrix(directory, manifest.dimension, manifest.dtype) for s in manifest.shards]
        self.starts = np.cumsum([0, *(s.count for s in manifest.shards)])
        row_bytes = 4 * self.dimension
        self._fits = self.count * row_bytes <= memory_bytes
        self.block_rows = max(1, memory_bytes // ((BUFFERS + 1) * row_bytes) // ALIGNMENT) * ALIGNMENT
        self._whole: Floats | None = None
        if self._fits and len(self._mapped) == 1 and self._mapped[0].dtype == np.float32:
            self._whole = self._mapped[0]

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Yields all vectors in order, as (first position, float32 [rows, dimension]), each valid until the next."""
        if self._fits:
            yield 0, self._in_memory()
            return
        with contextlib.closing(prefetched(self._read_blocks(), depth=BUFFERS - 1)) as blocks:
            yield from blocks

    def rows(self, positions: Positions) -> Floats:
        """Vectors at some positions, float32 [positions, dimension]."""
        if self._whole is not None:
            return self._whole.take(positions, axis=0)
        vectors = np.empty((len(positions), self.dimension), np.float32)
        shards = np.searchsorted(self.starts, positions, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            rows = positions[here] - self.starts[shard]
            vectors[here] = decoded(self._mapped[shard][rows] if self._fits else self._read_rows(shard, rows))
        return vectors

    def _in_memory(self) -> Floats:
        if self._whole is None:
            whole = np.empty((self.count, self.dimension), np.float32)
            self._fill(whole, 0)
            self._whole = whole
        return self._whole

    def _read_blocks(self) -> Iterator[tuple[int, Floats]]:
        size = min(self.block_rows, self.count)
        buffers = [np.empty((size, self.dimension), np.float32) for _ in range(BUFFERS)]
        for number, start in enumerate(range(0, self.count, size)):
            block = buffers[number % BUFFERS][: min(size, self.count - start)]
            self._fill(block, start)
            yield start, block

    def _fill(self, block: Floats, start: int) -> None:
        """Reads the rows from `start` on into `block`, across shards."""
        done = 0
        while done < len(block):
            shard = int(np.searchsorted(self.starts, start + done, "right")) - 1
            first = start + done - int(self.starts[shard])
            size = min(len(block) - done, self._shards[shard].count - first)
            self._read(shard, first, block[done : done + size])
            done += size

    def _read_rows(self, shard: int, rows: Positions) -> NDArray[Any]:
        """Reads rows from the file of a shard, as stored; see `_read`."""
        mapped = self._mapped[shard]
        path = self._directory / self._shards[shard].file
        stored = np.empty((len(rows), mapped.shape[1]), mapped.dtype)
        with path.open("rb", buffering=0) as file:
            offsets = (mapped.offset + rows * mapped.strides[0]).tolist()
            taken = [os.preadv(file.fileno(), [row], offset) for row, offset in zip(stored, offsets, strict=True)]
        if any(size != mapped.strides[0] for size in taken):
            raise InputError("ends too early", file=path, hint=HINT)
        return stored

    def _read(self, shard: int, first: int, target: Floats) -> None:
        """Reads from the file instead of the mapping, whose pages would count as this process's memory."""
        mapped = self._mapped[shard]
        path = self._directory / self._shards[shard].file
        whole = mapped.dtype == target.dtype
        step = len(target) if whole else PIECE_ROWS
        with path.open("rb", buffering=0) as file:
            file.seek(mapped.offset + first * mapped.strides[0])
            for at in range(0, len(target), step):
                part = target[at : at + step]
                piece = part if whole else np.empty((len(part), mapped.shape[1]), mapped.dtype)
                view = piece.data.cast("B")
                while view:
                    taken = file.readinto(view)
                    if not taken:
                        raise InputError("ends too early", file=path, hint=HINT)
                    view = view[taken:]
                if not whole:
                    decoded(piece, out=part)
