"""Writes shards beside the model, not between its batches: files, checksums and transfers in threads of their own."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever.errors import InputError
from llm_retriever.indexing.shard_store import Place
from llm_retriever.indexing.shards import Shard
from llm_retriever.indexing.stored import decoded

PIECES_WAITING = 2
"""Pieces that wait for the disk before the model has to wait too."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a shard, and what they cost.

    Attributes:
        shard: Number of the shard.
        count: Passages of the whole shard.
        vectors: As they are stored, [rows, row_width].
        ids: Passage ids of the rows.
        tokens: Tokens of the rows, padding left out.
        slots: The same with padding.
        seconds: Wall-clock time.
    """

    shard: int
    count: int
    vectors: NDArray[Any]
    ids: Sequence[str]
    tokens: int
    slots: int
    seconds: float


class ShardWriter:
    """Writes the pieces of shards, which come one shard after the other, each in the order of its rows.

    Leaving the context waits for the last byte; leaving it with an exception removes the shard that is not complete.

    Args:
        place: Takes the finished shards.
    """

    def __init__(self, place: Place) -> None:
        self._place, self.shards = place, dict[int, Shard]()
        # One thread each: pieces stay in order, and the next shard grows while the last one is sent.
        self._disk, self._sender = ThreadPoolExecutor(1, "write"), ThreadPoolExecutor(1, "send")
        self._pieces, self._sending = collections.deque[Future[None]](), collections.deque[Future[None]]()
        self._growing: _GrowingShard | None = None

    def add(self, piece: Piece) -> None:
        """Hands over a piece; waits only if several others are not yet on disk.

        Raises:
            InputError: An id holds a line break, or the place refuses a shard; possibly of an earlier piece.
        """
        self._pieces.append(self._disk.submit(self._write, piece))
        while len(self._pieces) > PIECES_WAITING or (self._pieces and self._pieces[0].done()):
            self._pieces.popleft().result()

    def _write(self, piece: Piece) -> None:
        if self._growing is None:
            self._growing = _GrowingShard(self._place.growing(piece.shard), piece)
        self._growing.add(piece)
        if self._growing.rows == piece.count:
            shard, self._growing = self._growing.finished(), None
            while len(self._sending) > 1:
                self._sending.popleft().result()
            self._sending.append(self._sender.submit(self._accept, piece.shard, shard))

    def _accept(self, number: int, shard: Shard) -> None:
        self._place.accept(number, shard)
        self.shards[number] = shard

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for waiting in (self._pieces, self._sending):
                    while waiting:
                        waiting.popleft().result()
        finally:
            self._disk.shutdown(cancel_futures=True)
            self._sender.shutdown(cancel_futures=True)
            if self._growing is not None:
                self._growing.remove()


class _GrowingShard:
    """The files of a shard under temporary names; checksums grow with them, so nothing is read back."""

    def __init__(self, directory: Path, first: Piece) -> None:
        self.directory = directory
        self.names = f"vectors-{first.shard:05d}.npy", f"ids-{first.shard:05d}.txt"
        mark = uuid.uuid4().hex[:16]
        self.drafts = [directory / f".{name}.{mark}.partial" for name in self.names]
        self.files = [draft.open("wb") for draft in self.drafts]
        self.digests = [hashlib.sha256(), hashlib.sha256()]
        self.rows = self.tokens = self.slots = 0
        self.seconds = self.largest = 0.0
        self._append(0, _header(first.count, first.vectors))

    def _append(self, file: int, data: bytes | memoryview) -> None:
        self.files[file].write(data)
        self.digests[file].update(data)

    def add(self, piece: Piece) -> None:
        """Appends rows to both files."""
        for passage_id in piece.ids:
            if "\n" in passage_id:
                raise InputError(f"the passage id {passage_id!r} holds a line break", field="_id")
        self.largest = max(self.largest, float(np.linalg.norm(decoded(piece.vectors), axis=1).max()))
        self._append(0, np.ascontiguousarray(piece.vectors).data.cast("B"))
        self._append(1, "".join(f"{passage_id}\n" for passage_id in piece.ids).encode())
        self.rows += len(piece.ids)
        self.tokens += piece.tokens
        self.slots += piece.slots
        self.seconds += piece.seconds

    def finished(self) -> Shard:
        """Renames the files to their final names and returns the shard."""
        for file, draft, name in zip(self.files, self.drafts, self.names, strict=True):
            file.close()
            os.replace(draft, self.directory / name)
        digests = [digest.hexdigest() for digest in self.digests]
        return Shard(
            file=self.names[0],
            ids=self.names[1],
            count=self.rows,
            sha256=digests[0],
            ids_sha256=digests[1],
            largest_norm=self.largest,
            tokens=self.tokens,
            slots=self.slots,
            seconds=round(self.seconds, 3),
        )

    def remove(self) -> None:
        """Removes what was written."""
        for file, draft in zip(self.files, self.drafts, strict=True):
            with contextlib.suppress(OSError):
                file.close()
            draft.unlink(missing_ok=True)


def _header(count: int, vectors: NDArray[Any]) -> bytes:
    """Header of an .npy file of `count` rows like these."""
    described = {
        "descr": np.lib.format.dtype_to_descr(vectors.dtype),
        "fortran_order": False,
        "shape": (count, vectors.shape[1]),
    }
    target = io.BytesIO()
    np.lib.format.write_array_header_1_0(target, described)
    return target.getvalue()
