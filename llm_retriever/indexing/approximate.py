"""The FAISS index of an index that is not flat: built from the shards, read back, asked for candidates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import HINT, FaissFile, Manifest
from llm_retriever.indexing.stored import Floats
from llm_retriever.indexing.streaming import Positions, ShardedVectors
from llm_retriever.progress import Progress

SPARE = 8
ROWS_AT_ONCE = 16_384
SEED = 1
VERSION = str(faiss.__version__)


class Approximate:
    """Candidates from `index.faiss`, which is checked against its checksum and read when it is first asked.

    Args:
        directory: Where the index lies.
        manifest: Its manifest.
        file: What the manifest says of the FAISS index.

    Attributes:
        parameters: With which it was built and is searched; `ef_search` and `probes` may be changed.
        refine: Candidates per wanted passage that are to be scored again; 0 = none.
    """

    def __init__(self, directory: Path, manifest: Manifest, file: FaissFile) -> None:
        self._directory, self._manifest, self._file = directory, manifest, file
        self.parameters = dict(file.parameters)
        self.refine = self.parameters.get("refine", 0)
        self._index: Any = None

    def candidates(self, queries: Floats, depth: int) -> tuple[Floats, Positions]:
        """Returns approximate scores and positions, [queries, k ≥ depth], best first; -1 behind the last one found."""
        if self._index is None:
            self._index = self._read()
        number = self.wanted(depth)
        effort = EFFORT.get(self._manifest.kind)
        return self._index.search(queries, number, params=effort(self, number) if effort else None)

    def wanted(self, depth: int) -> int:
        """Number of candidates of a query."""
        return min(depth * self.refine + SPARE if self.refine else depth, self._manifest.count)

    def _read(self) -> Any:
        path = self._directory / self._file.file
        if not self._file.is_intact(self._directory):
            raise InputError("is missing or does not have its checksum", file=path, hint=HINT)
        index = faiss.read_index(str(path))
        if (index.ntotal, index.d) != (self._manifest.count, self._manifest.dimension):
            content = f"{index.ntotal} vectors of dimension {index.d}"
            raise InputError(f"holds {content}, which the manifest does not say", file=path, hint=HINT)
        return index

    def _hnsw(self, number: int) -> Any:
        effort = max(self.parameters["ef_search"], number)
        return faiss.SearchParametersHNSW(efSearch=effort)  # type: ignore[attr-defined]

    def _ivf(self, number: int) -> Any:
        """Probes lists of average length that hold twice as many as `number`, at least."""
        lists = self.parameters["lists"]
        enough = -(-2 * number * lists // self._manifest.count)
        effort = min(lists, max(self.parameters["probes"], enough))
        return faiss.SearchParametersIVF(nprobe=effort)  # type: ignore[call-arg]


EFFORT: dict[str, Callable[[Approximate, int], Any]] = {"hnsw": Approximate._hnsw, "ivf-pq": Approximate._ivf}


def make(kind: str, dimension: int, parameters: dict[str, int]) -> Any:
    """Returns an empty FAISS index.

    Args:
        kind: hnsw, ivf-pq, sq8 or fp16.
        dimension: Numbers in a vector.
        parameters: As `faiss_kinds.plan` resolved them.
    """
    return MAKE[kind](dimension, parameters)


def _hnsw(dimension: int, parameters: dict[str, int]) -> Any:
    quantizer: Any = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexHNSWSQ(dimension, quantizer, parameters["m"], faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = parameters["ef_construction"]
    return index


def _ivf_pq(dimension: int, parameters: dict[str, int]) -> Any:
    quantizer = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQ(
        quantizer, dimension, parameters["lists"], parameters["bytes"], parameters["bits"], faiss.METRIC_INNER_PRODUCT
    )
    # FAISS warns of fewer than 39 training vectors a centroid; `faiss_kinds.plan` has settled how many there are.
    for clustering in (index.cp, index.pq.cp):
        clustering.seed, clustering.min_points_per_centroid = SEED, 1
    return index


def _scalar(quantizer: int) -> Callable[[int, dict[str, int]], Any]:
    return lambda dimension, parameters: faiss.IndexScalarQuantizer(dimension, quantizer, faiss.METRIC_INNER_PRODUCT)


MAKE: dict[str, Callable[[int, dict[str, int]], Any]] = {
    "hnsw": _hnsw,
    "ivf-pq": _ivf_pq,
    "sq8": _scalar(faiss.ScalarQuantizer.QT_8bit),
    "fp16": _scalar(faiss.ScalarQuantizer.QT_fp16),
}


def write(kind: str, parameters: dict[str, int], vectors: ShardedVectors, path: Path) -> None:
    """Builds an index of all vectors and writes it.

    Args:
        kind: hnsw, ivf-pq, sq8 or fp16.
        parameters: As `faiss_kinds.plan` resolved them.
        vectors: Are read block by block.
        path: The file.
    """
    index = make(kind, vectors.dimension, parameters)
    with _threads(parameters.get("threads", 0)):
        if not index.is_trained:
            index.train(_sample(vectors, parameters["sample"]))
        with Progress(f"build {kind}", vectors.count, "vectors") as progress:
            for _, block in vectors.blocks():
                for start in range(0, len(block), ROWS_AT_ONCE):
                    part = block[start : start + ROWS_AT_ONCE]
                    index.add(part)
                    progress.update(len(part))
        faiss.write_index(index, str(path))


def _sample(vectors: ShardedVectors, size: int) -> Floats:
    """Draws vectors to train on with a fixed seed, in the order of the collection."""
    drawn = np.random.default_rng(SEED).choice(vectors.count, size, replace=False)
    sample = vectors.rows(np.sort(drawn))
    return sample if size > 1 else np.repeat(sample, 2, axis=0)  # a code of one bit has two centroids


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """Lets FAISS use `number` threads; 0 = as many as it likes."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(number or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
