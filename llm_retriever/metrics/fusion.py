"""Fuses two rankings of a query, the retriever's and BM25's, each as deep as it was searched.

The convex combination ``weight · retriever + (1 - weight) · BM25`` takes scores that are stretched to [0, 1] over the
passages that a system returned for the query; a passage that one of them did not return counts as 0 there, as its last
one does. Where all scores of a system are equal, each counts as 1: all of them are its best.

Source: Bruch, Gai and Ingber, *An Analysis of Fusion Functions for Hybrid Retrieval*, TOIS 2023 (arXiv 2210.11934), who find
the convex combination better than reciprocal rank fusion, within a collection and across collections, and robust to the
choice of the normalisation. Reciprocal rank fusion, ``1 / (60 + rank)`` summed over the systems: Cormack, Clarke and Büttcher,
SIGIR 2009.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

RECIPROCAL_CONSTANT = 60
Kind = Literal["convex", "rrf"]
Ids = npt.NDArray[np.bytes_]
Scores = npt.NDArray[np.float32]
Shares = npt.NDArray[np.float64]


class Ranked(NamedTuple):
    """A system's ranking for a query.

    Attributes:
        ids: Passage ids in UTF-8 [n], best first; as bytes of one width they take a tenth of the memory of texts.
        scores: [n].
    """

    ids: Ids
    scores: Scores

    @classmethod
    def of(cls, ids: Iterable[str], scores: Iterable[float]) -> Ranked:
        """Makes a ranking of passages that stand best first."""
        return cls(np.array([name.encode() for name in ids], np.bytes_), np.fromiter(scores, np.float32))


class Candidates(NamedTuple):
    """The passages that either of two systems returned for a query.

    Attributes:
        ids: Descending [n], so that a stable sort by score leaves equal ones in trec_eval's order.
        dense, lexical: Stretched scores [n].
        reciprocal: Sums of reciprocal ranks [n].
    """

    ids: Ids
    dense: Shares
    lexical: Shares
    reciprocal: Shares


@dataclass(frozen=True)
class Fusion:
    """A way to fuse two rankings.

    Attributes:
        kind: `convex` or `rrf`.
        weight: Weight of the retriever in the convex combination, 0 to 1; BM25 has the rest.
    """

    kind: Kind = "convex"
    weight: float = 0.5

    def as_json(self) -> dict[str, Any]:
        """For manifests; reciprocal rank fusion has no weight."""
        return {"fusion": self.kind, "weight": self.weight if self.kind == "convex" else None}

    def best(self, candidates: Candidates, depth: int) -> dict[str, float]:
        """Returns the first `depth` passages by fused score, then by id, both descending.

        Scores are rounded to float32, as trec_eval does, so that its ties are those of every other reader.
        """
        if self.kind == "rrf":
            scores = candidates.reciprocal.astype(np.float32)
        else:
            mixed = self.weight * candidates.dense + (1 - self.weight) * candidates.lexical
            scores = mixed.astype(np.float32)
        order = _first(scores, depth)
        names = (name.decode() for name in candidates.ids[order].tolist())
        return dict(zip(names, scores[order].tolist(), strict=True))


def _first(scores: Scores, depth: int) -> npt.NDArray[np.intp]:
    """Positions of the `depth` largest scores, in order; equal ones stay in order."""
    if depth >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    reaching = np.flatnonzero(scores >= least)
    return reaching[np.argsort(-scores[reaching], kind="stable")][:depth]


def united(dense: Ranked, lexical: Ranked) -> Candidates:
    """Unites the passages of two rankings of the same query, with both scores."""
    ids = np.union1d(dense.ids, lexical.ids)
    stretched, reciprocal = [], np.zeros(len(ids))
    for ranked in (dense, lexical):
        at, values = np.searchsorted(ids, ranked.ids), np.zeros(len(ids))
        values[at] = min_max(ranked.scores)
        reciprocal[at] += 1 / (RECIPROCAL_CONSTANT + np.arange(1, len(at) + 1))
        stretched.append(values)
    return Candidates(ids[::-1], stretched[0][::-1], stretched[1][::-1], reciprocal[::-1])


def min_max(scores: npt.NDArray[np.floating[Any]]) -> Shares:
    """Scales scores of one query [n] to [0, 1]; all 1 where they are equal."""
    exact = scores.astype(np.float64)
    low, high = exact.min(initial=np.inf), exact.max(initial=-np.inf)
    return (exact - low) / (high - low) if high > low else np.ones(len(exact))
