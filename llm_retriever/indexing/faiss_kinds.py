"""Kinds of FAISS index: automatic parameters, needs in memory and on disk, and the building of one.

| kind | finds | bytes of FAISS's index, n passages of dimension d |
|---|---|---|
| `flat` | every passage (exact) | none: the shards are searched |
| `hnsw` | along a graph of M neighbours (Malkov and Yashunin, 2016), on fp16 vectors | n (2 d + 8 M + 16) |
| `ivf-pq` | in `probes` of L lists, by codes of b bytes (Jégou et al., 2011) | n (b + 8) + L 4 d + 2^bits 4 d |
| `sq8` | every passage by 1 byte a number | n d + 8 d |
| `fp16` | every passage by 2 bytes a number | 2 n d |

On disk the shards come on top: n times 4 d (fp32), 2 d (fp16) or d + 4 (int8). Searching holds FAISS's index and, for
`flat`, at most `streaming.MEMORY_BYTES` of vectors; building also holds the training sample and as many vectors again.
Files are the same byte by byte for the same vectors, FAISS version and number of threads; `hnsw` is built by one thread
for that, unless `hnsw_threads` says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.indexing.shard_store import LocalShards
from llm_retriever.indexing.shards import FaissFile, Manifest
from llm_retriever.indexing.stored import row_bytes
from llm_retriever.indexing.streaming import MEMORY_BYTES, ShardedVectors
from llm_retriever.settings import IndexSettings, is_unset

FAISS_FILE = "index.faiss"
GIB = 2**30
POINTS_PER_LIST = 40
"""FAISS wants 39 training vectors for each centroid."""
LARGEST_HALF = 65504.0
"""The largest finite number in float16."""

Parameters = dict[str, int]


@dataclass(frozen=True)
class Kind:
    """How a kind is planned.

    Attributes:
        parameters: Resolved from passages, dimension and settings.
        size: Bytes of FAISS's index, from passages, dimension and parameters.
        refine: Candidates per wanted passage that are scored again, unless told otherwise.
        half: Whether it stores numbers of half precision, which must not exceed 65,504.
    """

    parameters: Callable[[int, int, IndexSettings], Parameters]
    size: Callable[[int, int, Parameters], int]
    refine: int = 0
    half: bool = False


@dataclass(frozen=True)
class Plan:
    """An index to be built, and what it takes.

    Attributes:
        kind: As in the settings.
        count: Passages.
        dimension: Numbers in a vector.
        parameters: Resolved.
        index_bytes: FAISS's index, in memory and on disk.
        shard_bytes: The vectors on disk.
        build_bytes: Memory for building it.
        search_bytes: Memory for searching it.
    """

    kind: str
    count: int
    dimension: int
    parameters: Parameters
    index_bytes: int
    shard_bytes: int
    build_bytes: int
    search_bytes: int

    def __str__(self) -> str:
        """One line for people."""
        chosen = ", ".join(f"{name} {value:,}" for name, value in self.parameters.items() if name in SHOWN)
        return (
            f"index: {self.kind}{f' ({chosen})' if chosen else ''}, {self.count:,} passages × {self.dimension:,}: memory "
            f"{_gib(self.build_bytes)} to build and {_gib(self.search_bytes)} to search, "
            f"disk {_gib(self.shard_bytes + self.index_bytes)}"
        )


SHOWN = ("m", "ef_construction", "ef_search", "lists", "probes", "bytes", "sample", "refine")


def plan(count: int, dimension: int, settings: IndexSettings) -> Plan:
    """Resolves the parameters that the settings leave open, and estimates memory and disk.

    Args:
        count: Passages.
        dimension: Numbers in a vector.
        settings: The kind and its parameters.

    Raises:
        InputError: A parameter does not fit the passages.
    """
    kind = KINDS[settings.kind]
    parameters = kind.parameters(count, dimension, settings)
    if settings.kind != "flat":
        parameters["refine"] = kind.refine if is_unset(settings.refine) else settings.refine
    size = kind.size(count, dimension, parameters)
    vectors = min(4 * count * dimension, MEMORY_BYTES)
    building = size + 4 * dimension * parameters.get("sample", 0) + vectors
    return Plan(
        kind=settings.kind,
        count=count,
        dimension=dimension,
        parameters=parameters,
        index_bytes=size,
        shard_bytes=count * row_bytes(settings.dtype, dimension),
        build_bytes=0 if settings.kind == "flat" else building,
        search_bytes=size or vectors,
    )


def announce(count: int, dimension: int, settings: IndexSettings) -> Plan:
    """Prints the index to be built and what it takes; to be called before anything costs time.

    Raises:
        InputError: It takes more memory than the limit, or a parameter does not fit the passages.
    """
    made = plan(count, dimension, settings)
    if not count:
        return made
    print(made, file=sys.stderr, flush=True)
    needed = max(made.build_bytes, made.search_bytes)
    if settings.memory_gib and needed > settings.memory_gib * GIB:
        raise InputError(
            f"kind {settings.kind} needs {_gib(needed)} for {count:,} passages, the limit is "
            f"{settings.memory_gib:g} GiB",
            field="memory_gib",
            hint="take ivf-pq, or flat, which streams its vectors from disk, or raise the limit",
        )
    return made


def add_faiss(directory: Path, manifest: Manifest, settings: IndexSettings) -> Manifest:
    """Builds the FAISS index of shards that are complete, unless the kind is flat.

    Args:
        directory: Where the manifest will lie; FAISS's file is written beside it.
        manifest: Manifest of a flat index.
        settings: The kind and its parameters.

    Returns:
        The manifest with the kind and the file.

    Raises:
        InputError: A parameter does not fit the passages, or a vector does not fit the kind.
    """
    if settings.kind == "flat":
        return manifest
    from llm_retriever.indexing import approximate

    parameters = plan(manifest.count, manifest.dimension, settings).parameters
    _check_range(manifest, settings.kind)
    started = time.monotonic()
    shards = LocalShards(manifest, directory)
    path = directory / FAISS_FILE
    with files.atomic_file(path) as draft:
        approximate.write(settings.kind, parameters, ShardedVectors(shards.directory, manifest), draft)
    seconds = round(time.monotonic() - started, 3)
    made = FaissFile(FAISS_FILE, files.sha256_of_file(path), path.stat().st_size, parameters, seconds)
    versions = manifest.versions | {"faiss": approximate.VERSION}
    return dataclasses.replace(manifest, kind=settings.kind, faiss=made, versions=versions)


def _check_range(manifest: Manifest, kind: str) -> None:
    longest = max(shard.largest_norm for shard in manifest.shards)
    if KINDS[kind].half and longest > LARGEST_HALF:
        raise InputError(
            f"vectors of length {longest:,.0f} do not fit into half precision", field="kind", hint="take flat or sq8"
        )


def _hnsw(count: int, dimension: int, settings: IndexSettings) -> Parameters:
    return {
        "m": settings.hnsw_m,
        "ef_construction": settings.hnsw_ef_construction,
        "ef_search": settings.hnsw_ef_search,
        "threads": settings.hnsw_threads,
    }


def _ivf_pq(count: int, dimension: int, settings: IndexSettings) -> Parameters:
    """Chooses 4 √n lists, but 40 training vectors for each, and codes of a byte for 8 dimensions."""
    most = max(1, count // POINTS_PER_LIST)
    lists = min(most, round(4 * math.sqrt(count))) if is_unset(settings.ivf_lists) else settings.ivf_lists
    code = _divisor(dimension, max(1, dimension // 8)) if is_unset(settings.pq_bytes) else settings.pq_bytes
    if count and not 1 <= lists <= count:
        raise InputError(f"{lists:,} lists for {count:,} passages", field="ivf_lists", hint="give 1 to their number")
    if code < 1 or dimension % code:
        hint = f"give a divisor of it, for instance {_divisor(dimension, max(1, code))}"
        raise InputError(f"{code} bytes do not divide the dimension {dimension:,}", field="pq_bytes", hint=hint)
    probes = max(8, lists // 16) if is_unset(settings.ivf_probes) else settings.ivf_probes
    training_vectors = max(POINTS_PER_LIST * lists, 256 * POINTS_PER_LIST)
    sample = _sample(count, training_vectors, settings)
    if count and sample < lists:
        raise InputError(f"{sample:,} vectors to train {lists:,} lists", field="train_sample", hint="give more of them")
    bits = min(8, sample.bit_length() - 1)
    return {"lists": lists, "probes": min(max(1, probes), lists), "bytes": code, "bits": max(1, bits), "sample": sample}


def _divisor(dimension: int, most: int) -> int:
    """Largest divisor of the dimension that is at most `most`.

    >>> _divisor(768, 100)
    96
    """
    return next(size for size in range(min(most, dimension), 0, -1) if dimension % size == 0)


def _scalar(count: int, dimension: int, settings: IndexSettings) -> Parameters:
    return {"sample": _sample(count, 100_000, settings)}


def _sample(count: int, automatic: int, settings: IndexSettings) -> int:
    return min(count, automatic if is_unset(settings.train_sample) else max(1, settings.train_sample))


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


KINDS: dict[str, Kind] = {
    "flat": Kind(lambda count, dimension, settings: {}, lambda n, d, p: 0),
    "hnsw": Kind(_hnsw, lambda n, d, p: n * (2 * d + 8 * p["m"] + 16), refine=1, half=True),
    "ivf-pq": Kind(_ivf_pq, lambda n, d, p: n * (p["bytes"] + 8) + (p["lists"] + 2 ** p["bits"]) * 4 * d, refine=4),
    "sq8": Kind(_scalar, lambda n, d, p: n * d + 8 * d, refine=2),
    "fp16": Kind(lambda count, dimension, settings: {}, lambda n, d, p: 2 * n * d, refine=1, half=True),
}
"""Every kind of the settings."""
