"""Sorts rankings exactly as trec_eval does: score descending, then passage id descending, from the vectors alone.

A matrix product in float32 differs in its last bits from one shape to another. Scores that lie closer together than these
bits are computed again in float64 and rounded once; equal ones are ordered by the passages' ids. Where nearly everything
is close together, as with a backbone that was hardly trained, matrix products in float64 over all vectors take the place
of the rows that would have to be fetched one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from llm_retriever.indexing.stored import Floats
from llm_retriever.indexing.streaming import Positions, ShardedVectors

Doubles = NDArray[np.float64]
Cells = tuple[Positions, Positions]
"""Rows and columns of some scores."""
Names = Callable[[Positions], Sequence[str]]

NUMBERS_AT_ONCE = 16_384
"""Rows whose float64 copies are small enough that the C library keeps their memory; four times as many take 4 × longer."""
NUMBERS_OF_PIECE = 2**22
"""Scores, and numbers of vectors in float64, that a piece of `exact_top` has at most."""
SAMPLE = 256
SAFETY = 4
UNIT_32, UNIT_64 = np.finfo(np.float32).eps / 2, np.finfo(np.float64).eps / 2


def rounding(queries: Floats, largest_norm: float) -> Floats:
    """Bounds what float32 summation may add to or take from a score, doubled, [queries].

    Rounding errors of a sum of n terms grow with √n (Higham and Mary, 2019); 2 √n u |q| |p| leaves a wide margin.
    """
    norms = np.linalg.norm(queries, axis=1) * largest_norm
    return (4 * np.sqrt(queries.shape[1]) * UNIT_32 * norms).astype(np.float32)


def measured(
    queries: Floats, scores: Floats, positions: Positions, margin: Floats, vectors: ShardedVectors, largest_norm: float
) -> Floats:
    """Narrows the margin by the errors of a sample of scores; the bound holds for any vectors, and few need it.

    Args:
        queries: [queries, dimension].
        scores: As FAISS computed them, [queries, k].
        positions: Positions of the passages, [queries, k].
        margin: The bound, from `rounding`; stays where there are too few scores to measure.
        vectors: Vectors of the passages.
        largest_norm: Largest norm of the passages.

    Returns:
        Four times the largest error among 256 scores, relative to |q| |p|; at most the bound, [queries].
    """
    if scores.size < 64 * SAMPLE:
        return margin
    # A fixed seed: the same search measures the same margin. Sorted, so that vectors are read in the order of the disk.
    drawn = np.sort(np.random.default_rng(0).integers(0, scores.size, SAMPLE))
    rows, columns = np.divmod(drawn, scores.shape[1])
    some, values = queries[rows].astype(np.float64), scores[rows, columns].astype(np.float64)
    passages = vectors.rows(positions[rows, columns]).astype(np.float64)
    errors = np.abs(values - np.vecdot(some, passages)) + 2 * UNIT_32 * np.abs(values)
    scale = np.linalg.norm(some, axis=1) * np.linalg.norm(passages, axis=1)
    worst = np.divide(errors, scale, out=np.zeros(SAMPLE), where=scale > 0).max()
    return np.minimum(margin, SAFETY * worst * np.linalg.norm(queries, axis=1) * largest_norm).astype(np.float32)


def near(scores: Floats, margin: Floats) -> Cells:
    """Finds the scores, sorted in rows, that lie within the row's margin of a neighbour's; none where it is negative."""
    step = max(1, NUMBERS_AT_ONCE // scores.shape[1])
    parts = []
    for start in range(0, len(scores), step):
        some = scores[start : start + step]
        close = some[:, :-1] - some[:, 1:] <= margin[start : start + step, None]
        cells = np.zeros(some.shape, np.bool_)
        cells[:, :-1] = close
        cells[:, 1:] |= close
        parts.append(np.flatnonzero(cells) + start * scores.shape[1])
    return _cells(np.concatenate(parts) if parts else np.empty(0, np.int64), scores.shape[1])


def marked(mask: NDArray[np.bool_]) -> Cells:
    """Returns the cells of a mask; faster than `np.nonzero` where few are marked."""
    return _cells(np.flatnonzero(mask), mask.shape[1])


def _cells(flat: Positions, width: int) -> Cells:
    rows, columns = np.divmod(flat, width)
    return rows, columns


def rescore(
    queries: Floats, scores: Floats, positions: Positions, cells: Cells, vectors: ShardedVectors, names: Names
) -> None:
    """Re-scores tied candidates in float64 and re-sorts them, in place.

    Args:
        queries: [queries, dimension].
        scores: [queries, k], sorted in rows; only these cells may be out of order, and only among themselves.
        positions: Positions of the passages, [queries, k].
        cells: Those to re-score, row by row.
        vectors: Vectors of the passages.
        names: Ids of passages by position.
    """
    rows, columns = cells
    if not len(rows):
        return
    passages = positions[rows, columns]
    values = exact(queries, rows, vectors, passages)
    _order_values(rows, values, passages)
    _order_ties(rows, values, passages, names)
    scores[rows, columns], positions[rows, columns] = values, passages


def order_ties(scores: Floats, positions: Positions, cells: Cells, names: Names) -> None:
    """Sorts cells of equal score by passage id, in place; scores are sorted in rows."""
    rows, columns = cells
    passages = positions[rows, columns]
    _order_ties(rows, scores[rows, columns], passages, names)
    positions[rows, columns] = passages


def exact(queries: Floats | Doubles, rows: Positions, vectors: ShardedVectors, positions: Positions) -> Floats:
    """Computes inner products of pairs, float64 rounded once to float32, [pairs].

    Products of float32 are exact in float64, and every pair is summed in the same order whatever stands beside it.

    Args:
        queries: [queries, dimension].
        rows: Query of each pair; consecutive pairs of a query are cheapest, [pairs].
        vectors: Vectors of the passages.
        positions: Passage of each pair, [pairs].
    """
    doubles = queries.astype(np.float64, copy=False)
    values = np.empty(len(rows), np.float32)
    step = max(1, NUMBERS_AT_ONCE // vectors.dimension)
    for start in range(0, len(rows), step):
        passages = vectors.rows(positions[start : start + step]).astype(np.float64)
        values[start : start + step] = np.vecdot(doubles.take(rows[start : start + step], axis=0), passages)
    return values


def _order_values(rows: Positions, values: Floats, passages: Positions) -> None:
    """Sorts each row by value, descending, in place; most rows are in order already."""
    wrong = (rows[:-1] == rows[1:]) & (values[:-1] < values[1:])
    if not wrong.any():
        return
    mixed = np.zeros(rows[-1] + 1, np.bool_)
    mixed[rows[:-1][wrong]] = True
    cells = np.flatnonzero(mixed[rows])
    order = cells[np.lexsort((-values[cells], rows[cells]))]
    values[cells], passages[cells] = values[order], passages[order]


def _order_ties(rows: Positions, values: Floats, passages: Positions, names: Names) -> None:
    """Sorts equal values of a row by id, descending, in place; rows and values are sorted."""
    equal = (rows[:-1] == rows[1:]) & (values[:-1] == values[1:])
    if not equal.any():
        return
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    ranks = _descending(passages[tied], names)
    passages[tied] = passages[tied][np.lexsort((ranks, -values[tied], rows[tied]))]


def _descending(positions: Positions, names: Names) -> Positions:
    """Ranks passages by id, the largest first."""
    unique, where = np.unique(positions, return_inverse=True)
    ids = names(unique)
    ranks = np.empty(len(unique), np.int64)
    ranks[sorted(range(len(unique)), key=ids.__getitem__, reverse=True)] = np.arange(len(unique))
    return ranks[where]


def exact_top(
    queries: Floats, depth: int, vectors: ShardedVectors, largest_norm: float, names: Names
) -> tuple[Floats, Positions]:
    """Ranks exactly by float64 matrix products over all vectors: no slower when nearly all scores are close.

    Returns:
        Scores and positions, [queries, depth], best first; depth must not exceed the number of vectors.
    """
    doubles = queries.astype(np.float64)
    # n u |q| |p| bounds the error of a float64 sum in any order.
    error = len(queries.T) * UNIT_64 * np.linalg.norm(doubles, axis=1) * largest_norm * 1.01
    step = max(1, NUMBERS_OF_PIECE // max(queries.shape))
    best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for first, block in vectors.blocks():
        for at in range(0, len(block), step):
            piece = np.arange(first + at, first + min(at + step, len(block)))
            scores = _scores(doubles, block[at : at + step], piece, error, vectors)
            best = _merged(best, scores, piece, depth, names)
    return best


def _scores(queries: Doubles, block: Floats, positions: Positions, error: Doubles, vectors: ShardedVectors) -> Floats:
    """Computes scores like `exact`, which decides where the error could change the rounding to float32."""
    products = queries @ block.astype(np.float64).T
    scores = (products - error[:, None]).astype(np.float32)
    rows, columns = np.nonzero(scores != (products + error[:, None]).astype(np.float32))
    scores[rows, columns] = exact(queries, rows, vectors, positions[columns])
    return scores


def _merged(
    best: tuple[Floats, Positions], scores: Floats, piece: Positions, depth: int, names: Names
) -> tuple[Floats, Positions]:
    """Merges the best so far and a piece's scores, [queries, rows], in the rows that the piece can change."""
    full = best[0].shape[1] == depth
    rows = np.flatnonzero(scores.max(axis=1) >= best[0][:, -1]) if full else np.arange(len(scores))
    if not len(rows):
        return best
    width = min(depth, len(piece))
    columns = _top_columns(scores[rows], width, piece, names)
    joined = np.hstack([best[0][rows], np.take_along_axis(scores[rows], columns, 1)])
    passages = np.hstack([best[1][rows], piece[columns]])
    order = np.argsort(-joined, axis=1, kind="stable")
    joined, passages = np.take_along_axis(joined, order, 1), np.take_along_axis(passages, order, 1)
    flat = passages.ravel()
    _order_ties(np.repeat(np.arange(len(rows)), joined.shape[1]), joined.ravel(), flat, names)
    kept = joined[:, :depth], flat.reshape(joined.shape)[:, :depth]
    if not full:
        return kept
    best[0][rows], best[1][rows] = kept
    return best


def _top_columns(scores: Floats, width: int, piece: Positions, names: Names) -> Positions:
    """Picks the columns of the `width` best of each row; among those equal to the last one, the largest ids, [rows, width]."""
    count = scores.shape[1]
    if width == count:
        return np.broadcast_to(np.arange(count), scores.shape)
    floors = np.partition(scores, count - width, axis=1)[:, count - width]
    columns = np.empty((len(scores), width), np.int64)
    ranks: Positions | None = None
    for row, floor in enumerate(floors):
        above, level = np.flatnonzero(scores[row] > floor), np.flatnonzero(scores[row] == floor)
        room = width - len(above)
        if len(level) > room:
            ranks = _descending(piece, names) if ranks is None else ranks
            level = level[np.argpartition(ranks[level], room - 1)[:room]]
        columns[row] = np.concatenate([above, level])
    return columns
