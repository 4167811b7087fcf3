"""Retrieval metrics with the semantics of trec_eval, computed by trec_eval's own code (pytrec_eval).

Passages are ranked by score and, at equal scores, by passage id in descending order; scores are compared as float32
numbers, and the order of the lines in a run does not matter. A judged query that a system returned nothing for counts as 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pytrec_eval

from llm_retriever.errors import InputError

Qrels = Mapping[str, Mapping[str, int]]
Rankings = Mapping[str, Mapping[str, float]]

_TREC_NAMES = {"mrr": "recip_rank", "ndcg": "ndcg_cut", "recall": "recall", "map": "map"}
_LABELS = {"mrr": "MRR", "ndcg": "nDCG", "recall": "Recall", "map": "MAP"}
_SPELLING = re.compile(r"(mrr|ndcg|recall)@([1-9][0-9]*)|map")
MEND = "use mrr@K, ndcg@K, recall@K or map, separated by commas"


@dataclass(frozen=True)
class Measure:
    """A metric and its cutoff.

    Attributes:
        kind: `mrr`, `ndcg`, `recall` or `map`.
        cutoff: Ranks looked at; 0 = all (`map`).
    """

    kind: str
    cutoff: int = 0

    @property
    def name(self) -> str:
        """As it is written in settings: ``ndcg@10``."""
        return f"{self.kind}@{self.cutoff}" if self.cutoff else self.kind

    @property
    def label(self) -> str:
        """As people read it: ``nDCG@10``."""
        return f"{_LABELS[self.kind]}@{self.cutoff}" if self.cutoff else _LABELS[self.kind]

    @property
    def key(self) -> str:
        """As a name of a number in Kubeflow: ``ndcg_at_10``."""
        return f"{self.kind}_at_{self.cutoff}" if self.cutoff else self.kind

    @property
    def is_graded(self) -> bool:
        """Whether grades count as they are, so that no relevance level applies."""
        return self.kind == "ndcg"

    @property
    def _trec_name(self) -> str:
        return _TREC_NAMES[self.kind] + (f".{self.cutoff}" if self.kind in ("ndcg", "recall") else "")

    def _of(self, values: Mapping[str, float]) -> float:
        """This measure's value among those that trec_eval computed for one query."""
        value = values[self._trec_name.replace(".", "_")]
        if self.kind == "mrr":
            # trec_eval has no cutoff here; below 1/K, the first relevant passage stands beyond rank K.
            return value if value >= 1 / self.cutoff else 0.0
        return value


def parse_measures(text: str, field: str = "measures") -> list[Measure]:
    """Measures from ``"mrr@10, ndcg@10"``, in order, each once.

    Raises:
        InputError: A name is unknown, or there is none; `field` is the setting to blame.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("names no metric", field=field, mend=MEND)
    return list(dict.fromkeys(_parse_one(name, field) for name in names))


def _parse_one(name: str, field: str) -> Measure:
    match = _SPELLING.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is no metric", field=field, mend=MEND)
    return Measure(match[1], int(match[2])) if match[1] else Measure("map")


def score_queries(
    measures: Iterable[Measure], qrels: Qrels, run: Rankings, *, relevance_level: int = 1
) -> dict[str, dict[str, float]]:
    """Every metric of every judged query.

    nDCG takes the grade as gain and log2(rank + 1) as discount; it has no relevance level. The others are binary.

    Args:
        measures: What to compute.
        qrels: Grade by passage id, by query id.
        run: Score by passage id, by query id; queries without judgments are ignored.
        relevance_level: Lowest grade that counts as relevant in binary metrics (trec_eval's ``-l``).

    Returns:
        Value by query id, by name of the measure; the queries are those of `qrels` in their order, absent ones with 0.
    """
    measures = list(measures)
    judged = {query: run[query] for query in qrels if run.get(query)}
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(grades) for query, grades in qrels.items()},
        {measure._trec_name for measure in measures},
        relevance_level=relevance_level,
    )
    values = evaluator.evaluate(judged)
    return {
        measure.name: {query: measure._of(values[query]) if query in values else 0.0 for query in qrels}
        for measure in measures
    }


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over the judged queries (one at least) of every metric that `score_queries` returned."""
    return {name: math.fsum(values.values()) / len(values) for name, values in scores.items()}
