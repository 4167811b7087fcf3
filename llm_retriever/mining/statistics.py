"""Counts what mining found, for the manifest, the Markdown summary and the page."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever.bm25.sparse import Ranking
from llm_retriever.data.training_set import Negative
from llm_retriever.mining.selection import RANDOM, REASONS, Selection, View

BORDERS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class SourceStatistics:
    """Counts of one source.

    Args:
        depth: Candidates searched for each query.

    Attributes:
        positive_ranks: Rank of the best positive of every query; 0 = not retrieved.
        positive_scores: Its score, where it was retrieved.
        ranks: Ranks of the negatives that this source ranks best.
        scores: Scores of the same negatives.
        counts: What the manifest keeps.
    """

    def __init__(self, depth: int) -> None:
        self.positive_ranks, self.ranks = array("i"), array("i")
        self.positive_scores, self.scores = array("f"), array("f")
        self._above = np.zeros(depth + 1, np.int64)
        self.counts: dict[str, Any] = {
            "candidates": 0,
            "removed": dict.fromkeys(REASONS, 0),
            "positive_retrieved": 0,
            "negatives": 0,
            "above_positive": 0,
            "positive_not_retrieved": 0,
        }

    def add(self, view: View) -> None:
        """Adds the candidates of a query."""
        for reason, number in view.removed.items():
            self.counts["removed"][reason] += number
        self.counts["candidates"] += view.candidates
        self.counts["positive_retrieved"] += bool(view.positive_rank)
        self.positive_ranks.append(view.positive_rank)
        if view.positive_rank:
            self.positive_scores.append(view.positive_score)

    def add_negative(self, negative: Negative, view: View) -> None:
        """Adds a negative of a query, judged by the query's candidates.

        One that scores above the best positive may be an unlabelled positive; where no positive was retrieved, every
        candidate does.
        """
        self.ranks.append(negative.rank)
        self.scores.append(negative.score)
        self.counts["negatives"] += 1
        if not view.positive_rank:
            self.counts["positive_not_retrieved"] += 1
        elif negative.rank < view.positive_rank:
            self.counts["above_positive"] += 1
        else:
            return
        self._above[negative.rank] += 1

    def retrieved_within(self, borders: Sequence[int]) -> list[float]:
        """Share of the queries whose best positive is within each of these ranks."""
        ranks = np.frombuffer(self.positive_ranks, np.int32)
        return [np.count_nonzero((ranks > 0) & (ranks <= border)) / max(len(ranks), 1) for border in borders]

    def negatives_by_rank(self, bounds: Sequence[int]) -> list[int]:
        """Numbers of negatives with ranks in (bounds[i], bounds[i + 1]]."""
        number, _ = np.histogram(np.frombuffer(self.ranks, np.int32), np.array(bounds) + 0.5)
        return [int(count) for count in number]

    def above_by_rank(self, bounds: Sequence[int]) -> list[float]:
        """Share of the negatives of each of these rank ranges that score above their query's best positive."""
        cumulative = np.cumsum(self._above)[np.array(bounds)]
        return [
            float(above) / number if number else 0.0
            for above, number in zip(np.diff(cumulative), self.negatives_by_rank(bounds), strict=True)
        ]

    def score_arrays(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores of the best positives that were retrieved, and of the negatives."""
        return np.frombuffer(self.positive_scores, np.float32), np.frombuffer(self.scores, np.float32)


class Statistics:
    """Counts of a whole mining, added up query by query.

    Args:
        sources: Names of the sources, in order.
        depth: Candidates searched for each query and source.
        negatives: Negatives wanted for each query.

    Attributes:
        depth: As given.
        wanted: As `negatives`.
        sources: What each source found.
        counts: What the manifest of the training set keeps; complete when the last query was added.
    """

    def __init__(self, sources: Sequence[str], depth: int, negatives: int) -> None:
        self.depth, self.wanted = depth, negatives
        self.sources = {name: SourceStatistics(depth) for name in sources}
        self.borders = [border for border in BORDERS if border < depth] + [depth]
        self._shared = np.zeros(len(self.borders))
        self._compared = 0
        self.counts: dict[str, Any] = {
            "queries": 0,
            "examples": 0,
            "negatives": 0,
            "found_by_several": 0,
            "random": 0,
            "near_duplicates": 0,
            "fewer_negatives_than_wanted": 0,
            "dropped": {"no_positives": 0, "nothing_found": 0, "nothing_left": 0},
            "sources": {name: source.counts for name, source in self.sources.items()},
        }

    def count_queries(self, number: int, *, without_positives: int) -> None:
        """Counts the training queries before any is searched."""
        self.counts["queries"] = number
        self.counts["dropped"]["no_positives"] = without_positives

    def add(self, selection: Selection, rankings: Mapping[str, Ranking]) -> None:
        """Adds a query's selection, and the rankings that it was drawn from."""
        counts, drawn = self.counts, len(selection.negatives)
        counts["near_duplicates"] += selection.near_copies
        if drawn:
            counts["examples"] += 1
            counts["fewer_negatives_than_wanted"] += drawn < self.wanted
        else:
            counts["dropped"]["nothing_left" if any(rankings.values()) else "nothing_found"] += 1
        counts["negatives"] += drawn
        for name, view in selection.views.items():
            self.sources[name].add(view)
        for negative in selection.negatives:
            counts["found_by_several"] += bool(negative.also)
            if negative.source == RANDOM:
                counts["random"] += 1
            else:
                self.sources[negative.source].add_negative(negative, selection.views[negative.source])
        if len(rankings) > 1:
            self._compare(*rankings.values())

    def _compare(self, one: Ranking, other: Ranking) -> None:
        """Adds the share of passages that two rankings have in common at each border."""
        if not (one and other):
            return
        ours, theirs = ({passage: rank for rank, (passage, _) in enumerate(r, 1)} for r in (one, other))
        shared = sorted(max(rank, theirs[passage]) for passage, rank in ours.items() if passage in theirs)
        common = np.searchsorted(np.array(shared, np.int64), self.borders, side="right")
        most = np.minimum(self.borders, min(len(ours), len(theirs)))
        self._shared += common / most
        self._compared += 1

    def overlap(self) -> list[float]:
        """Mean share of passages that the two sources have in common within the top `borders`; empty for one source."""
        return (self._shared / self._compared).tolist() if self._compared else []
