"""A shard on disk: a NumPy matrix of vectors, and the passage ids of its rows as UTF-8 lines.

Neither is ever read into memory as a whole: the matrix is mapped, and ids are decoded where a search hits them. An index
is verified against its manifest byte by byte: cut, permuted, exchanged or spoilt files are found.
"""

from __future__ import annotations

import dataclasses
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files.checksums import sha256_of_large_file
from llm_retriever.indexing.stored import DTYPES, decoded, row_width
from llm_retriever.progress import Progress
from llm_retriever.settings.index import IndexKind

MANIFEST_FILE = "manifest.json"
FORMAT = 1
KINDS = get_args(IndexKind)
HINT = "build the index anew with build_index"
ROWS_AT_ONCE = 65_536
TOLD_FROM = 1_000_000
"""Vectors of an index whose check takes long enough to report on."""
DENSE = 6
"""Where at least one id in so many is wanted, decoding the whole file at once takes less time than one by one."""


@dataclass(frozen=True)
class Shard:
    """A shard's entry in the manifest.

    Attributes:
        file: The matrix, .npy, [count, row_width] (see `indexing.stored`).
        ids: The ids, one a line, in the order of the rows.
        count: Passages.
        sha256: Of the matrix file.
        ids_sha256: Of the ids file.
        largest_norm: Length of its longest vector.
        tokens: Tokens that went through the model, padding left out.
        slots: Tokens that went through the model, padding included.
        seconds: Wall-clock time of encoding it.
    """

    file: str
    ids: str
    count: int
    sha256: str
    ids_sha256: str
    largest_norm: float
    tokens: int
    slots: int
    seconds: float

    def is_intact(self, directory: Path) -> bool:
        """Whether both files have the bytes that they were written with."""
        return self.damaged(directory) is None

    def damaged(self, directory: Path) -> str | None:
        """Name of the first file that is missing or has other bytes than it was written with; None = both are intact."""
        named = ((self.file, self.sha256), (self.ids, self.ids_sha256))
        return next((name for name, digest in named if not _has_bytes(directory / name, digest)), None)

    def matrix(self, directory: Path, dimension: int, dtype: str) -> np.memmap[Any, np.dtype[Any]]:
        """Maps the stored vectors from the file, [count, row_width].

        Raises:
            InputError: The file is missing, cut off, or of another shape or type.
        """
        path = directory / self.file
        try:
            matrix: np.memmap[Any, np.dtype[Any]] = files.mapped_array(path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"the vectors cannot be read ({error})", file=path, hint=HINT) from None
        shape = (self.count, row_width(dtype, dimension))
        if matrix.shape != shape or matrix.dtype != DTYPES[dtype]:
            actual = f"{matrix.dtype} {list(matrix.shape)}"
            expected = f"{DTYPES[dtype]} {list(shape)}"
            raise InputError(f"holds {actual}, the manifest says {expected}", file=path, hint=HINT)
        return matrix

    def passage_ids(self, directory: Path) -> PassageIds:
        """The ids of the rows.

        Raises:
            InputError: The file is missing, or has not `count` ids.
        """
        path = directory / self.ids
        if not path.is_file():
            raise InputError("no such file", file=path, hint=HINT)
        ids = PassageIds(path)
        if len(ids) != self.count:
            raise InputError(f"holds {len(ids)} ids, the manifest says {self.count}", file=path, hint=HINT)
        return ids


class PassageIds:
    """Ids by row in 8 bytes of memory each; the file itself is mapped.

    Args:
        path: UTF-8 lines.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
        self._ends = np.flatnonzero(np.frombuffer(self._bytes, np.uint8) == ord("\n"))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> str:
        return self.of(np.array([row]))[0]

    def of(self, rows: NDArray[np.int64]) -> list[str]:
        """The ids of several rows."""
        if len(rows) * DENSE >= len(self):
            names = self._bytes[:].decode().split("\n")
            return [names[row] for row in rows.tolist()]
        starts = np.where(rows > 0, self._ends[rows - 1] + 1, 0)
        return [self._bytes[i:j].decode() for i, j in zip(starts.tolist(), self._ends[rows].tolist(), strict=True)]


@dataclass(frozen=True)
class FaissFile:
    """The manifest's entry of the FAISS index beside the shards.

    Attributes:
        file: As `faiss.write_index` wrote it.
        sha256: Of the file; it is read only if this is right, because FAISS trusts what it reads.
        size: Bytes.
        parameters: With which it was built and is searched, automatic ones resolved.
        seconds: Wall-clock time of building it.
    """

    file: str
    sha256: str
    size: int
    parameters: dict[str, int]
    seconds: float = 0.0

    def is_intact(self, directory: Path) -> bool:
        """Whether the file has the bytes that it was written with."""
        return _has_bytes(directory / self.file, self.sha256)


@dataclass(frozen=True)
class PassagesFile:
    """The manifest's entry of the passages' digests beside the shards.

    Attributes:
        file: .npy, uint64 [count, 2], in the order of the collection (see `indexing.passages`).
        sha256: Of the file.
    """

    file: str
    sha256: str

    def is_intact(self, directory: Path) -> bool:
        """Whether the file has the bytes that it was written with."""
        return _has_bytes(directory / self.file, self.sha256)


def _has_bytes(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of_large_file(path) == sha256


@dataclass(frozen=True)
class Manifest:
    """`manifest.json` of an index.

    Attributes:
        kind: `flat`: every vector is compared; else the kind of the FAISS index in `faiss` (see `indexing.faiss_kinds`).
        metric: `inner_product`.
        count: Passages.
        dimension: Numbers in a vector, as stored.
        dtype: `fp32`, `fp16` or `int8`, as stored.
        shards: In the order of the collection.
        card: Digest of the retriever's card.
        collection: Fingerprint of the collection.
        settings: As resolved: passage length, arithmetic, …
        timings: Seconds, passages and tokens per second, padding share.
        versions: Versions of the libraries that made it.
        faiss: The file of an index that is not flat.
        encoder: Name of the encoder, for people; `row:NAME` if `encoders.load(NAME)` loads it from the table.
        shards_uri: Directory or s3:// prefix where the shards lie; empty = beside the manifest.
        passages: The digests of the passages; None in an index of an earlier version.
        reused: Passages whose vectors were taken over from an earlier index.
        encoder_dimension: Numbers in a vector of the encoder, of which the first `dimension` are kept; 0 = the same.
        normalised: Whether what is kept of passages and queries is scaled to length 1.
    """

    kind: str
    metric: str
    count: int
    dimension: int
    dtype: str
    shards: tuple[Shard, ...]
    card: str
    collection: str
    settings: dict[str, Any]
    timings: dict[str, float]
    versions: dict[str, str]
    faiss: FaissFile | None = None
    shards_uri: str = ""
    encoder: str = ""
    passages: PassagesFile | None = None
    reused: int = 0
    encoder_dimension: int = 0
    normalised: bool = False
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, directory: str | Path) -> Manifest:
        """Reads the manifest of an index.

        Raises:
            InputError: The directory is not an index of this format.
        """
        path = Path(directory) / MANIFEST_FILE
        content = files.read_json(path, hint="give the output of build_index")
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("kind") not in KINDS:
            raise InputError(f"not an index of format {FORMAT}", file=path, field="format", hint=HINT)
        manifest: Manifest = files.checked(TypeAdapter(cls), content, path, hint=HINT)
        _check(manifest, path)
        return manifest


def _check(manifest: Manifest, path: Path) -> None:
    names = [name for shard in manifest.shards for name in (shard.file, shard.ids)]
    names += [beside.file for beside in (manifest.faiss, manifest.passages) if beside]
    if any(Path(name).name != name for name in names):
        raise InputError("names a file outside the index", file=path, field="shards", hint=HINT)
    if manifest.dtype not in DTYPES:
        raise InputError(f"unknown type {manifest.dtype!r}", file=path, field="dtype", hint=HINT)
    if manifest.dimension < 1 or 0 < manifest.encoder_dimension < manifest.dimension:
        raise InputError("is more than the encoder's, or nothing", file=path, field="dimension", hint=HINT)
    if sum(shard.count for shard in manifest.shards) != manifest.count:
        raise InputError("the shards do not add up to the count", file=path, field="count", hint=HINT)
    if (manifest.kind == "flat") != (manifest.faiss is None):
        raise InputError(f"an index of kind {manifest.kind} does not fit", file=path, field="faiss", hint=HINT)


def check_index(manifest: Manifest, index: Path, shards: Path) -> None:
    """Compares every file of an index with its manifest, and looks for vectors that are not finite.

    Args:
        manifest: Manifest of the index.
        index: Directory of the manifest.
        shards: Directory of the shards.

    Raises:
        InputError: A file is missing, has other bytes or another number of rows, or a number in it is not finite.
    """
    with Progress("check the index", manifest.count, "vectors", quiet=manifest.count < TOLD_FROM) as progress:
        for shard in manifest.shards:
            _check_shard(shard, shards, manifest)
            progress.update(shard.count)
    for beside in (manifest.faiss, manifest.passages):
        if beside is not None and not beside.is_intact(index):
            raise InputError("is missing or does not have its checksum", file=index / beside.file, hint=HINT)


def _check_shard(shard: Shard, directory: Path, manifest: Manifest) -> None:
    matrix = shard.matrix(directory, manifest.dimension, manifest.dtype)
    shard.passage_ids(directory)
    if damaged := shard.damaged(directory):
        raise InputError("does not have its checksum", file=directory / damaged, hint=HINT)
    for start in range(0, shard.count, ROWS_AT_ONCE):
        finite = np.isfinite(decoded(matrix[start : start + ROWS_AT_ONCE])).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"the vector in row {row:,} is not finite", file=directory / shard.file, hint=HINT)
