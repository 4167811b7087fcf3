"""Exact search: FAISS finds the candidates, float64 decides where its rounding could not, ids break the ties."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from llm_retriever.card import RetrieverCard
from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import MEND, Manifest

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]

QUERIES_AT_ONCE = 4096
ROWS_AT_ONCE = 131_072
CANDIDATES_AT_ONCE = 16_000_000
NUMBERS_AT_ONCE = 131_072
SPARE = 16
"""Candidates beyond the wanted depth, so that a near-tie at the last rank is seen at once in almost every case."""


class Index:
    """Vectors on disk and their passage ids; `open` makes one.

    The ranking is that of trec_eval: score descending, then passage id descending. It depends on the vectors alone, not on
    shards, threads or the number of queries at once: FAISS's sums differ in their last bits from one matrix shape to
    another, so candidates that lie closer together than these bits are scored again in float64.

    Args:
        directory: Where it lies.
        manifest: Its manifest.

    Attributes:
        manifest: What the index is and what it was made of.
        count: Passages.
        dimension: Numbers in a vector.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest
        self.count, self.dimension = manifest.count, manifest.dimension
        self._matrices = [s.matrix(directory, manifest.dimension, manifest.dtype) for s in manifest.shards]
        self._ids = [s.passage_ids(directory) for s in manifest.shards]
        self._starts = np.cumsum([0, *(s.count for s in manifest.shards)])
        self._largest_norm = max((s.largest_norm for s in manifest.shards), default=0.0)

    @classmethod
    def open(cls, path: str | Path, card: RetrieverCard, *, verify: bool = False) -> Index:
        """Opens an index for the queries of a retriever; vectors stay on disk until they are searched.

        Args:
            path: The output of `build_index`.
            card: Of the retriever that encodes the queries.
            verify: Compare every file with its checksum, which reads all of it.

        Raises:
            InputError: It is no index, it belongs to another card, or a shard is missing or was changed.
        """
        directory = Path(path)
        manifest = Manifest.load(directory)
        if manifest.card != card.digest():
            raise InputError(
                "the index was made by another retriever",
                file=directory,
                field="card",
                mend="search it with the retriever that made it, or build the index anew with this one",
            )
        if verify:
            for shard in manifest.shards:
                if not shard.is_intact(directory):
                    raise InputError("does not have its checksum", file=directory / shard.file, mend=MEND)
        return cls(directory, manifest)

    def search(self, vectors: Floats, depth: int) -> tuple[Floats, list[list[str]]]:
        """The passages with the largest inner products.

        Args:
            vectors: float32 [queries, dimension].
            depth: Passages per query.

        Returns:
            Scores [queries, k] and passage ids [queries][k], best first; k = min(depth, count).

        Raises:
            ValueError: The vectors have another dimension or are not finite, or the depth is not positive.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"queries of shape {list(vectors.shape)} for an index of dimension {self.dimension}")
        if not np.isfinite(vectors).all():
            raise ValueError("a query vector is not finite")
        if depth < 1:
            raise ValueError(f"depth {depth}")
        depth = min(depth, self.count)
        scores, ids = np.empty((len(vectors), depth), np.float32), list[list[str]]()
        for start in range(0, len(vectors), QUERIES_AT_ONCE):
            some = np.ascontiguousarray(vectors[start : start + QUERIES_AT_ONCE], np.float32)
            ranked, positions = self._ranked(some, depth, depth + SPARE)
            scores[start : start + len(some)] = ranked
            ids += self._passage_ids(positions)
        return scores, ids

    def passage_id(self, position: int) -> str:
        """Id of the passage at a position of the collection."""
        shard = int(np.searchsorted(self._starts, position, "right")) - 1
        return self._ids[shard][position - int(self._starts[shard])]

    def _passage_ids(self, positions: Positions) -> list[list[str]]:
        found, where = np.unique(positions, return_inverse=True)
        names: list[str] = []
        for ids, start, end in zip(self._ids, self._starts, self._starts[1:], strict=False):
            names += ids.of(found[(found >= start) & (found < end)] - start)
        return np.array(names, dtype=object)[where.reshape(positions.shape)].tolist()

    def _ranked(self, queries: Floats, depth: int, candidates: int) -> tuple[Floats, Positions]:
        """The exact top `depth` in trec_eval's order."""
        candidates = min(candidates, self.count)
        scores, positions = self._candidates(queries, candidates)
        rounding = self._rounding(queries)
        # A passage that was left out may belong to the top if it could reach the score at the last rank.
        unsure = (scores[:, depth - 1] - scores[:, -1] <= rounding) & (candidates < self.count)
        self._score_near_ties(queries, scores, positions, rounding)
        self._sort(scores, positions)
        scores, positions = scores[:, :depth], positions[:, :depth]
        again = np.flatnonzero(unsure)
        step = max(1, CANDIDATES_AT_ONCE // (4 * candidates))
        for some in (again[start : start + step] for start in range(0, len(again), step)):
            scores[some], positions[some] = self._ranked(queries[some], depth, 4 * candidates)
        return scores, positions

    def _candidates(self, queries: Floats, k: int) -> tuple[Floats, Positions]:
        """FAISS's top k over all blocks of vectors, best first."""
        scores, positions = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for start, block in self._blocks():
            with _matrix_products(self.dimension):
                found, rows = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
            if not scores.shape[1]:
                scores, positions = found, rows + start
                continue
            scores, positions = np.hstack([scores, found]), np.hstack([positions, rows + start])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, positions = np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
        return scores, positions

    def _blocks(self) -> Iterator[tuple[int, Floats]]:
        """(first position, float32 vectors): whole shards as they lie in the file, or pieces of float16 shards."""
        for start, matrix in zip(self._starts.tolist(), self._matrices, strict=False):
            if matrix.dtype == np.float32:
                yield start, matrix
                continue
            for row in range(0, len(matrix), ROWS_AT_ONCE):
                yield start + row, matrix[row : row + ROWS_AT_ONCE].astype(np.float32)

    def _rounding(self, queries: Floats) -> Floats:
        """Twice what float32 summation may add to or take from a score, [queries].

        Rounding errors of a sum of n terms grow with √n (Higham and Mary, 2019); 2 √n u |q| |p| leaves a wide margin.
        """
        unit = np.finfo(np.float32).eps / 2
        norms = np.linalg.norm(queries, axis=1) * self._largest_norm
        return (4 * np.sqrt(self.dimension) * unit * norms).astype(np.float32)

    def _score_near_ties(self, queries: Floats, scores: Floats, positions: Positions, rounding: Floats) -> None:
        """Replaces scores that lie within rounding of a neighbour's by the exact inner product, rounded once."""
        close = scores[:, :-1] - scores[:, 1:] <= rounding[:, None]
        near = np.pad(close, ((0, 0), (0, 1))) | np.pad(close, ((0, 0), (1, 0)))
        rows, columns = np.nonzero(near)
        step = max(1, NUMBERS_AT_ONCE // self.dimension)
        for start in range(0, len(rows), step):
            at = rows[start : start + step], columns[start : start + step]
            passages = self._vectors(positions[at])
            # Products of float32 are exact in float64, and a row is summed in the same order whatever stands beside it.
            scores[at] = (queries[at[0]].astype(np.float64) * passages).sum(axis=1)

    def _vectors(self, positions: Positions) -> NDArray[np.float64]:
        vectors = np.empty((len(positions), self.dimension), np.float64)
        shards = np.searchsorted(self._starts, positions, "right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            vectors[here] = self._matrices[shard][positions[here] - self._starts[shard]]
        return vectors

    def _sort(self, scores: Floats, positions: Positions) -> None:
        """Sorts each row in place: score descending, passage id descending."""
        mixed = np.flatnonzero((scores[:, :-1] < scores[:, 1:]).any(axis=1))
        order = np.argsort(-scores[mixed], axis=1, kind="stable")
        scores[mixed] = np.take_along_axis(scores[mixed], order, 1)
        positions[mixed] = np.take_along_axis(positions[mixed], order, 1)
        equal = scores[:, :-1] == scores[:, 1:]
        for row in np.flatnonzero(equal.any(axis=1)):
            edges = np.flatnonzero(~np.concatenate([[False], equal[row], [False]]))
            for begin, end in itertools.pairwise(edges):
                if end - begin > 1:
                    tied = positions[row, begin:end].tolist()
                    positions[row, begin:end] = sorted(tied, key=self.passage_id, reverse=True)


@contextlib.contextmanager
def _matrix_products(dimension: int) -> Iterator[None]:
    """FAISS compares by matrix products from 4 queries on; left alone it does so from 128,000 / dimension, 8 × slower."""
    threshold = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 4 * dimension
    try:
        yield
    finally:
        faiss.cvar.distance_compute_blas_threshold = threshold


def main(arguments: list[str] | None = None) -> int:
    """Searches from a shell; returns the exit code."""
    from llm_retriever.indexing import shell

    return shell.main(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
