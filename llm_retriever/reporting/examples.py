"""Example queries on which a system wins or loses: the query, what is relevant, and what each system returned."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llm_retriever.data.collection import PassageLookup
from llm_retriever.metrics.measures import Measure, score_queries

TOP = 3
SNIPPET = 240
QUERIES_EACH_WAY = 3


@dataclass
class Judged:
    """The judged run of one system on one split.

    Attributes:
        scores: Value by query id, by name of the measure.
        top: The first passage ids by query id, in trec_eval's order.
        first_relevant: Rank of the first relevant passage by query id; 0 = none was returned.
    """

    scores: dict[str, dict[str, float]]
    top: dict[str, list[str]]
    first_relevant: dict[str, int]


@dataclass(frozen=True)
class Shown:
    """A passage in the report; `grade` is None where nobody judged it."""

    id: str
    title: str
    snippet: str
    grade: int | None
    is_relevant: bool


@dataclass(frozen=True)
class Answer:
    """A system's results for an example query."""

    system: str
    value: float
    first_relevant: int
    passages: list[Shown]


@dataclass(frozen=True)
class Example:
    """A query with the answers of the retriever and of one other system."""

    query_id: str
    query: str
    relevant: list[Shown]
    more_relevant: int
    answers: list[Answer] = field(default_factory=list)


def judge(
    measures: Sequence[Measure],
    qrels: Mapping[str, Mapping[str, int]],
    run: Mapping[str, Mapping[str, float]],
    level: int,
    highest: int = sys.maxsize,
) -> Judged:
    """Scores a run and keeps what examples need; arguments are those of `score_queries`."""
    longest = max((len(ranking) for ranking in run.values()), default=0)
    reciprocal = Measure("mrr", max(longest, 1))
    scores = score_queries([*measures, reciprocal], qrels, run, relevance_level=level, highest_level=highest)
    ranks = {query: round(1 / value) if value else 0 for query, value in scores[reciprocal.name].items()}
    top = {query: _best(run.get(query, {})) for query in qrels}
    return Judged({m.name: scores[m.name] for m in measures}, top, ranks)


def _best(ranking: Mapping[str, float]) -> list[str]:
    best = heapq.nlargest(TOP, ((score, passage) for passage, score in ranking.items()))
    return [passage for _, passage in best]


def most_different(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Ids of the queries with the largest gains and with the largest losses, at most three each, in a fixed order."""
    ordered = sorted(ours, key=lambda query: (theirs[query] - ours[query], query))
    won = [query for query in ordered[:QUERIES_EACH_WAY] if ours[query] > theirs[query]]
    lost = [query for query in reversed(ordered[-QUERIES_EACH_WAY:]) if ours[query] < theirs[query]]
    return won, lost


class Examples:
    """Makes examples of one split.

    Args:
        queries: Text by query id.
        qrels: Grade by passage id by query id.
        lookup: The corpus.
        level: Lowest grade that counts as relevant.
    """

    def __init__(
        self,
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, int]],
        lookup: PassageLookup,
        level: int,
    ) -> None:
        self.queries, self.qrels, self.lookup, self.level = queries, qrels, lookup, level

    def example(self, query: str, systems: Mapping[str, Judged], metric: str) -> Example:
        """Builds the example of a query with the answers of `systems`."""
        grades = self.qrels[query]
        relevant = sorted((p for p, grade in grades.items() if grade >= self.level), key=lambda p: (-grades[p], p))
        answers = [
            Answer(
                name, judged.scores[metric][query], judged.first_relevant[query], self._shown(query, judged.top[query])
            )
            for name, judged in systems.items()
        ]
        return Example(query, self.queries[query], self._shown(query, relevant[:1]), len(relevant) - 1, answers)

    def _shown(self, query: str, passages: Sequence[str]) -> list[Shown]:
        return [self._show(passage, self.qrels[query].get(passage)) for passage in passages]

    def _show(self, passage_id: str, grade: int | None) -> Shown:
        passage = self.lookup[passage_id]
        return Shown(passage.id, passage.title, snippet(passage.text), grade, (grade or 0) >= self.level)


def snippet(text: str, length: int = SNIPPET) -> str:
    """Cuts a text to its beginning on one line, between words."""
    text = " ".join(text.split())
    if len(text) <= length:
        return text
    cut = text[:length].rsplit(" ", 1)[0] if " " in text[:length] else text[:length]
    return cut.rstrip(" ,;:.") + " …"
