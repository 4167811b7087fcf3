"""Searches an index: FAISS finds the candidates, float64 decides where its rounding could not, ids break the ties."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import faiss
import numpy as np

from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing import near_ties
from llm_retriever.indexing.approximate import Approximate
from llm_retriever.indexing.shard_store import LocalShards
from llm_retriever.indexing.shards import Manifest, check_index
from llm_retriever.indexing.stored import Floats, first_numbers
from llm_retriever.indexing.streaming import MEMORY_BYTES, Positions, ShardedVectors
from llm_retriever.models.card import RetrieverCard

QUERIES_AT_ONCE = 4096
CANDIDATES_AT_ONCE = IDS_AT_ONCE = 2**20
SPARE = 8
"""Candidates beyond the wanted depth, so that a near-tie at the last rank is seen at once in almost every case."""
GPU_DEPTH = 2048
"""FAISS's limit on a GPU."""


class RankedIds(Sequence[list[str]]):
    """Passage ids, [queries][k], decoded when a row is looked at; equal to the lists that they stand for.

    Args:
        names: Ids in the shape of positions.
        positions: Positions of passages, [queries, k].

    Attributes:
        positions: As given.
    """

    def __init__(self, names: Callable[[Positions], list[list[str]]], positions: Positions) -> None:
        self._names, self.positions = names, positions

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, row: int) -> list[str]: ...

    @overload
    def __getitem__(self, row: slice) -> RankedIds: ...

    def __getitem__(self, row: int | slice) -> list[str] | RankedIds:
        if isinstance(row, slice):
            return RankedIds(self._names, self.positions[row])
        return self._names(self.positions[row][None])[0]

    def __iter__(self) -> Iterator[list[str]]:
        step = max(1, IDS_AT_ONCE // max(1, self.positions.shape[1]))
        for start in range(0, len(self), step):
            yield from self._names(self.positions[start : start + step])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Index:
    """Vectors on disk and their passage ids; `open` makes one.

    A flat index compares every vector. Its ranking is that of trec_eval: score descending, then passage id descending. It
    depends on the vectors alone, not on shards, threads or the number of queries at once (see `near_ties`). An index of
    another kind asks FAISS for candidates, which may miss some, and scores them again from the exact vectors unless it
    was built with `refine=0`.

    Args:
        directory: Where it lies.
        manifest: Its manifest.
        memory_bytes: As for `open`.

    Attributes:
        manifest: What the index is and what it was made of.
        count: Passages.
        dimension: Numbers in a vector.
        approximate: What finds the candidates of an index that is not flat.
    """

    def __init__(self, directory: Path, manifest: Manifest, memory_bytes: int = MEMORY_BYTES) -> None:
        self.directory, self.manifest = directory, manifest
        self.count, self.dimension = manifest.count, manifest.dimension
        self._shards = LocalShards(manifest, directory)
        self._vectors = ShardedVectors(self._shards.directory, manifest, memory_bytes)
        self._ids = [s.passage_ids(self._shards.directory) for s in manifest.shards]
        self._largest_norm = max((s.largest_norm for s in manifest.shards), default=0.0)
        self.approximate = None if manifest.faiss is None else Approximate(directory, manifest, manifest.faiss)

    @classmethod
    def open(
        cls,
        path: str | Path,
        encoder: Encoder | RetrieverCard,
        *,
        verify: bool = False,
        memory_bytes: int = MEMORY_BYTES,
    ) -> Index:
        """Opens an index for the queries of an encoder; vectors stay on disk until they are searched.

        Args:
            path: The output of `build_index`.
            encoder: What encodes the queries, or the card of a retriever that is not loaded.
            verify: Compare every file with its checksum and look for numbers that are not finite: reads all of it.
            memory_bytes: Vectors held in memory at most; those of a larger index are streamed from disk at every search,
                so that it pays to search with many queries at once.

        Raises:
            InputError: It is no index, it was made by another encoder, or a shard is missing or was changed.
        """
        directory = Path(path)
        manifest = Manifest.load(directory)
        if manifest.card != (encoder.digest() if isinstance(encoder, RetrieverCard) else encoder.identity()):
            raise InputError(
                "the index was made by another retriever",
                file=directory,
                field="card",
                hint="search it with the retriever that made it, or build the index anew with this one",
            )
        index = cls(directory, manifest, memory_bytes)
        if verify:
            index.verify()
        return index

    def verify(self) -> None:
        """Compares every file with the manifest.

        Raises:
            InputError: One was changed, or holds a number that is not finite.
        """
        check_index(self.manifest, self.directory, self._shards.directory)

    def search(self, vectors: Floats, depth: int) -> tuple[Floats, RankedIds]:
        """Returns the passages with the largest inner products.

        Args:
            vectors: float32 [queries, dimension], of the encoder; what the index does not keep of vectors is left out.
            depth: Passages per query.

        Returns:
            Scores [queries, k] and passage ids [queries][k], best first; k = min(depth, count). The ids are decoded when
            they are looked at.

        Raises:
            ValueError: The vectors have another dimension or are not finite, or the depth is not positive.
        """
        whole = self.manifest.encoder_dimension or self.dimension
        if vectors.ndim != 2 or vectors.shape[1] != whole:
            raise ValueError(f"queries of shape {list(vectors.shape)} for an index of dimension {whole}")
        if not np.isfinite(vectors).all():
            raise ValueError("a query vector is not finite")
        if depth < 1:
            raise ValueError(f"depth {depth}")
        depth = min(depth, self.count)
        vectors = first_numbers(vectors, self.dimension, normalised=self.manifest.normalised)
        rank = functools.partial(self._approximate, self.approximate) if self.approximate else self._exact
        step = QUERIES_AT_ONCE if not self.approximate else max(1, CANDIDATES_AT_ONCE // self.approximate.wanted(depth))
        parts = (vectors[i : i + step] for i in range(0, max(1, len(vectors)), step))
        ranked = [rank(np.ascontiguousarray(part, np.float32), depth) for part in parts]
        scores, positions = ranked[0]
        if len(ranked) > 1:
            scores, positions = (np.concatenate([part[i] for part in ranked]) for i in (0, 1))
        return scores, RankedIds(self._passage_ids, positions)

    def passage_id(self, position: int) -> str:
        """Id of the passage at a position of the collection."""
        return self._names(np.array([position]))[0]

    def _names(self, positions: Positions) -> list[str]:
        """Ids of passages by position; positions must be sorted."""
        edges = np.searchsorted(positions, self._vectors.starts).tolist()
        starts = self._vectors.starts.tolist()
        names: list[str] = []
        for ids, start, first, last in zip(self._ids, starts, edges, edges[1:], strict=False):
            if last > first:
                names += ids.of(positions[first:last] - start)
        return names

    def _passage_ids(self, positions: Positions) -> list[list[str]]:
        """Decodes ids in the shape of `positions`, each once."""
        # A mask over all passages costs less than a sort, but where few of them were found.
        if positions.size * 8 < self.count:
            unique, where = np.unique(positions, return_inverse=True)
            return np.array(self._names(unique), dtype=object)[where.reshape(positions.shape)].tolist()
        hit = np.zeros(self.count, np.bool_)
        hit[positions] = True
        unique = np.flatnonzero(hit)
        table = np.empty(self.count, dtype=object)
        table[unique] = self._names(unique)
        # Row by row the strings' pointers stay in the processor's cache: half the time of the whole table at depth 1000.
        return [table[row].tolist() for row in positions]

    def _exact(self, queries: Floats, depth: int) -> tuple[Floats, Positions]:
        """Returns the exact top `depth` in trec_eval's order."""
        candidates = min(depth + SPARE, self.count)
        scores, positions = self._candidates(queries, candidates)
        bound = near_ties.rounding(queries, self._largest_norm)
        margin = near_ties.measured(queries, scores, positions, bound, self._vectors, self._largest_norm)
        # A passage that was left out may belong to the top if it could reach the score at the last rank.
        unsure = (scores[:, depth - 1] - scores[:, -1] <= margin) & (candidates < self.count)
        cells = near_ties.near(scores, np.where(unsure, -1, margin))
        near_ties.rescore(queries, scores, positions, cells, self._vectors, self._names)
        scores, positions = scores[:, :depth], positions[:, :depth]
        again = np.flatnonzero(unsure)
        if len(again):
            scores[again], positions[again] = near_ties.exact_top(
                queries[again], depth, self._vectors, self._largest_norm, self._names
            )
        return scores, positions

    def _approximate(self, finder: Approximate, queries: Floats, depth: int) -> tuple[Floats, Positions]:
        """Returns FAISS's candidates by their exact scores; queries with too few are searched exactly."""
        scores, positions = finder.candidates(queries, depth)
        missing = positions < 0
        few = missing[:, depth - 1]
        cells = near_ties.marked(~missing & ~few[:, None])
        if finder.refine:
            near_ties.rescore(queries, scores, positions, cells, self._vectors, self._names)
        else:
            near_ties.order_ties(scores, positions, cells, self._names)
        scores, positions = scores[:, :depth], positions[:, :depth]
        again = np.flatnonzero(few)
        if len(again):
            scores[again], positions[again] = self._exact(queries[again], depth)
        return scores, positions

    def _candidates(self, queries: Floats, k: int) -> tuple[Floats, Positions]:
        """Returns FAISS's top k over all blocks of vectors, best first."""
        blocks = (_knn(queries, block, k, start) for start, block in self._vectors.blocks())
        return functools.reduce(_merged, blocks)


def _knn(queries: Floats, block: Floats, k: int, start: int) -> tuple[Floats, Positions]:
    """Returns FAISS's exact top k of a block that begins at position `start`; -1 where it has fewer rows."""
    if k <= GPU_DEPTH and faiss.get_num_gpus():
        scores, rows = faiss.knn_gpu(_gpu(), queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    else:
        with _matrix_products(queries.shape[1]):
            scores, rows = faiss.knn(queries, block, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores, np.where(rows < 0, rows, rows + start) if start else rows


def _merged(best: tuple[Floats, Positions], more: tuple[Floats, Positions]) -> tuple[Floats, Positions]:
    """Merges two rankings of the same queries, [queries, k]."""
    scores, rows = np.stack([best[0], more[0]]), np.stack([best[1], more[1]])
    return faiss.merge_knn_results(scores, rows, keep_max=True)


@functools.cache
def _gpu() -> Any:
    return faiss.StandardGpuResources()


@contextlib.contextmanager
def _matrix_products(dimension: int) -> Iterator[None]:
    """Makes FAISS use matrix products from 4 queries on; its own threshold, 128,000 / dimension, is 8 × slower."""
    threshold = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 4 * dimension
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold
