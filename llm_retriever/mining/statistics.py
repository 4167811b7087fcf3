"""Counts what mining found, and tells it as Markdown."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np

from llm_retriever.mining.selection import REASONS, Selection

BORDERS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
BAR_WIDTH = 40
MEANINGS = {
    "positive": "are positives of the query",
    "same_text": "have the text of a positive or of the query",
    "rank_floor": "stand above the rank floor",
    "score_ceiling": "score above the ceiling",
}
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Statistics:
    """Adds up one query after the other.

    Args:
        depth: Candidates searched for each query.
        negatives: Negatives wanted for each query.

    Attributes:
        counts: What the manifest of the training set keeps; complete when the last query was added.
    """

    def __init__(self, depth: int, negatives: int) -> None:
        self._depth, self._wanted = depth, negatives
        self._positive_ranks, self._ranks = array("l"), array("l")
        self._positive_scores, self._scores = array("f"), array("f")
        self.counts: dict[str, Any] = {
            "queries": 0,
            "examples": 0,
            "negatives": 0,
            "candidates": 0,
            "dropped": {"no_positives": 0, "no_candidates": 0},
            "fewer_negatives_than_wanted": 0,
            "positive_retrieved": 0,
            "removed": dict.fromkeys(REASONS, 0),
        }

    def count_queries(self, number: int, *, without_positives: int) -> None:
        """Counts the training queries before any is searched."""
        self.counts["queries"] = number
        self.counts["dropped"]["no_positives"] = without_positives

    def add(self, selection: Selection) -> None:
        """Adds what came of a query."""
        counts, found = self.counts, len(selection.negatives)
        for reason, number in selection.removed.items():
            counts["removed"][reason] += number
        counts["candidates"] += selection.candidates
        counts["dropped"]["no_candidates"] += not found
        counts["examples"] += bool(found)
        counts["fewer_negatives_than_wanted"] += 0 < found < self._wanted
        counts["negatives"] += found
        counts["positive_retrieved"] += bool(selection.positive_rank)
        self._positive_ranks.append(selection.positive_rank)
        if selection.positive_rank:
            self._positive_scores.append(selection.positive_score)
        self._ranks.extend(negative.rank for negative in selection.negatives)
        self._scores.extend(negative.score for negative in selection.negatives)

    def markdown(self, recipe: dict[str, Any]) -> str:
        """Tells people what was mined, how, and what to look at."""
        counts = self.counts
        bm25 = recipe["sources"]["bm25"]
        return "\n".join(
            [
                "# Hard negatives",
                "",
                f"{counts['examples']:,} of {counts['queries']:,} training queries got {counts['negatives']:,} negatives, "
                f"drawn with seed {recipe['seed']} from BM25's top {bm25['depth']:,} (k1 {bm25['k1']}, b {bm25['b']}; "
                f"{bm25['analyzer']}). Rank floor: {recipe['rank_floor'] or 'off'}; "
                f"score ceiling: {recipe['score_ceiling'] or 'off'}.",
                "",
                *self._query_lines(),
                "## Candidates left out",
                "",
                *[f"- {counts['removed'][reason]:,} {MEANINGS[reason]}" for reason in REASONS],
                f"- of {counts['candidates']:,} candidates in all",
                "",
                "## How soon BM25 finds a positive",
                "",
                *self._positive_lines(),
                "## Ranks of the negatives",
                "",
                *_histogram(np.frombuffer(self._ranks, np.dtype("l")), self._depth),
                "## Scores",
                "",
                *_score_table(self._positive_scores, self._scores),
            ]
        )

    def _query_lines(self) -> list[str]:
        counts, dropped = self.counts, self.counts["dropped"]
        return [
            f"- {dropped['no_positives']:,} queries dropped because they have no positive",
            f"- {dropped['no_candidates']:,} queries dropped because no candidate was left",
            f"- {counts['fewer_negatives_than_wanted']:,} queries with fewer than {self._wanted:,} negatives",
            "",
        ]

    def _positive_lines(self) -> list[str]:
        ranks = np.frombuffer(self._positive_ranks, np.dtype("l"))
        borders = [border for border in BORDERS if border < self._depth] + [self._depth]
        number = max(len(ranks), 1)
        shares = [f"{np.count_nonzero((ranks > 0) & (ranks <= border)) / number:.1%}" for border in borders]
        return [
            _row(["within the top", *(f"{border:,}" for border in borders)]),
            _rule(len(borders)),
            _row(["share of the queries", *shares]),
            "",
        ]


def _histogram(ranks: np.ndarray, depth: int) -> list[str]:
    """A bar for every tenth of the depth: an even draw is flat, what was left out at the top shows as a dent."""
    borders = np.unique(np.linspace(0, depth, 11).round().astype(int))
    number, _ = np.histogram(ranks, borders + 0.5)
    longest = max(int(number.max(initial=0)), 1)
    lines = ["```"]
    for low, high, count in zip(borders, borders[1:], number, strict=False):
        lines.append(f"{f'{low + 1:,}–{high:,}':>13} {'█' * round(BAR_WIDTH * count / longest)} {count:,}")
    return [*lines, "```", ""]


def _score_table(positives: array[float], negatives: array[float]) -> list[str]:
    lines = [_row(["BM25 score", "lowest", "25 %", "median", "75 %", "highest"]), _rule(len(QUANTILES))]
    for name, scores in (("best positive, where retrieved", positives), ("negatives", negatives)):
        if scores:
            values = np.quantile(np.frombuffer(scores, np.float32), QUANTILES)
            lines.append(_row([name, *(f"{value:.2f}" for value in values)]))
    return [*lines, ""]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(numbers: int) -> str:
    return "|---|" + "--:|" * numbers
