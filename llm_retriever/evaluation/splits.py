"""The measures and splits that the settings choose, and the results on a split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.metrics.conventions import (
    BACKBONE,
    BM25,
    HYBRID,
    PRODUCTION,
    PRODUCTION_HYBRID,
    RETRIEVER,
    TRAINING_SPLIT,
)
from llm_retriever.metrics.measures import Measure, parse_measures
from llm_retriever.reporting.examples import Judged
from llm_retriever.settings import EvaluationSettings

ZERO_SHOT = "zero_shot"
BEIR_MEASURE = "ndcg@10"
Content = TypeVar("Content")


@dataclass
class SplitResults:
    """A split, and the results of the systems on it.

    Attributes:
        level: Grade from which a judgment counts as relevant in binary metrics that do not say it themselves.
        highest: The highest grade, at least 1; levels above it are lowered to it.
        depth: Passages that are searched per query: those that are judged, and one more where any may be left out.
        own: Queries whose rankings do not hold the passage of the same id, which there is.
        left_out: By system, how many such passages it returned.
        judged: By system.
    """

    name: str
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    level: int
    highest: int
    depth: int
    own: frozenset[str] = frozenset()
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)

    def in_order(self) -> dict[str, Judged]:
        """Judged systems, in the order of `in_order`."""
        return in_order(self.judged)


def in_order(systems: Mapping[str, Content]) -> dict[str, Content]:
    """Sorts systems: retriever and production, each before its fusion, BM25, un-tuned backbone, then others as added."""
    first = (RETRIEVER, HYBRID, PRODUCTION, PRODUCTION_HYBRID, BM25, BACKBONE)
    names = dict.fromkeys((*first, *systems))
    return {name: systems[name] for name in names if name in systems}


class Measures(NamedTuple):
    """The measures, the one that decides, and sentences for people on what was changed."""

    all: list[Measure]
    primary: Measure
    notes: list[str]


def chosen_measures(settings: EvaluationSettings) -> Measures:
    """Parses the measures of the settings; adds the primary one where they lack it, and BEIR's with its collections.

    A cutoff beyond the search depth is lowered to it, and noted, unless the measure decides.

    Raises:
        InputError: A name is unknown, or the cutoff of one that decides lies beyond the search depth.
    """
    measures = parse_measures(settings.measures)
    primaries = parse_measures(settings.primary_metric, "primary_metric")
    if len(primaries) != 1:
        raise InputError(
            f"{settings.primary_metric!r} is more than one metric", field="primary_metric", hint="name one"
        )
    needed = primaries + (parse_measures(BEIR_MEASURE) if settings.zero_shot else [])
    measures += [measure for measure in needed if measure not in measures]
    for measure in needed:
        if measure.cutoff > settings.depth:
            raise InputError(
                f"{measure.name} needs more than {settings.depth} passages per query",
                field="depth",
                hint=f"search {measure.cutoff}, or decide by another metric",
            )
    deep = [measure for measure in measures if measure.cutoff > settings.depth]
    lowered = {measure: replace(measure, cutoff=settings.depth) for measure in deep}
    notes = [
        f"{measure.label} was lowered to {least.label}: {settings.depth} passages were searched per query."
        for measure, least in lowered.items()
    ]
    return Measures(list(dict.fromkeys(lowered.get(m, m) for m in measures)), primaries[0], notes)


def chosen_splits(settings: EvaluationSettings, corpus: Collection) -> list[str]:
    """Names of the splits to evaluate, each once.

    Raises:
        InputError: A split is unknown, or only training queries are left.
    """
    named = [name.strip() for name in settings.splits.split(",") if name.strip()]
    chosen = list(dict.fromkeys(named)) or [name for name in corpus.splits if name != TRAINING_SPLIT]
    for name in chosen:
        if name not in corpus.splits:
            raise InputError(
                f"the collection has no split {name!r}", field="splits", hint=f"use {', '.join(corpus.splits)}"
            )
    if not chosen:
        raise InputError(
            "the collection has only the split train",
            file=corpus.directory,
            field="splits",
            hint="prepare the corpus with a share of evaluation queries, or name train to evaluate on training queries",
        )
    return chosen


def open_split(corpus: Collection, name: str, levels: Iterable[int], depth: int) -> SplitResults:
    """Reads a split; a relevance level that no judgment reaches is lowered to the highest grade, which is noted.

    Args:
        corpus: The collection.
        name: Name of the split.
        levels: The level of the evaluation, then those of single measures (0 = that of the evaluation).
        depth: Passages per query that are judged.

    Raises:
        InputError: The split has no judgments.
    """
    queries, qrels = corpus.queries(name), corpus.qrels(name)
    if not qrels or not queries:
        raise InputError(f"the split {name!r} has no judgments", file=corpus.directory, field="splits")
    highest = max(1, *(grade for grades in qrels.values() for grade in grades.values()))
    levels = list(dict.fromkeys(levels))
    judged, own = {query: qrels[query] for query in queries}, corpus.own_passages(name)
    split = SplitResults(name, queries, judged, min(levels[0], highest), highest, depth, own)
    split.notes += [
        f"No judgment reaches relevance level {level}; level {highest} was used." for level in levels if level > highest
    ]
    without = sum(max(grades.values()) < split.level for grades in judged.values())
    if without:
        split.notes.append(
            f"{without:,} of {len(queries):,} queries have no passage of grade {split.level} or more, and count as 0 wherever "
            "one is looked for."
        )
    return split
