"""Retrieval metrics with the semantics of trec_eval, computed by trec_eval's own code (pytrec_eval).

Passages are ranked by score and, at equal scores, by passage id in descending order; scores are compared as float32
numbers, and the order of the lines in a run does not matter. A judged query that a system returned nothing for counts as 0.

Metrics are spelt like those of ir-measures: ``ndcg@10``, ``recall@1000``, ``recall(rel=2)@1000``, where the last one counts
passages from grade 2 as relevant, whatever the relevance level of the evaluation is.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pytrec_eval

from llm_retriever.errors import InputError

Qrels = Mapping[str, Mapping[str, int]]
Rankings = Mapping[str, Mapping[str, float]]


class _Kind(NamedTuple):
    """A kind of metric: trec_eval's names with and without a cutoff ("" = there is none), a label, a sentence."""

    cut: str
    whole: str
    label: str
    meaning: str


_KINDS = {
    "mrr": _Kind(
        "recip_rank",
        "",
        "MRR",
        "1 / rank of the first relevant passage, 0 beyond rank {k}; mean over the queries.",
    ),
    "ndcg": _Kind(
        "ndcg_cut.{k}",
        "",
        "nDCG",
        "how high the relevant passages stand among the first {k}, 1 being the ideal order; gain = grade, "
        "discount = log2(rank + 1).",
    ),
    "recall": _Kind("recall.{k}", "", "Recall", "share of the relevant passages that are among the first {k}."),
    "precision": _Kind("P.{k}", "", "Precision", "share of the first {k} passages that are relevant."),
    "success": _Kind("success.{k}", "", "Success", "share of the queries with a relevant passage among the first {k}."),
    "map": _Kind(
        "map_cut.{k}", "map", "MAP", "mean over the relevant passages of the precision at their ranks{within}."
    ),
    "rprec": _Kind("", "Rprec", "R-Precision", "precision at the rank that is the number of relevant passages."),
}
_ALIASES = {"rr": "mrr", "r": "recall", "p": "precision", "ap": "map"}
_SPELLING = re.compile(r"([a-z]+)(?:\(rel=([1-9][0-9]*)\))?(?:@([1-9][0-9]*))?")
PRESETS = {
    "msmarco-passage": "mrr@10,recall@1000",
    "msmarco-document": "mrr@100,recall@100",
    "trec-dl": "ndcg@10,map(rel=2),recall(rel=2)@1000,recall(rel=1)@1000",
    "beir": "ndcg@10,recall@100",
}
"""What a benchmark is reported in. TREC's deep learning tracks count grades from 2 as relevant in binary metrics; papers give
recall from grade 1 as well as from 2, so there are both."""
HINT = "use mrr@K, ndcg@K, recall@K, precision@K, success@K, map, map@K or rprec, separated by commas"


@dataclass(frozen=True)
class Measure:
    """A metric, its cutoff and its relevance level.

    Attributes:
        kind: `mrr`, `ndcg`, `recall`, `precision`, `success`, `map` or `rprec`.
        cutoff: Ranks looked at; 0 = all (`map`, `rprec`).
        level: Grade from which a passage is relevant; 0 = as the evaluation says.
    """

    kind: str
    cutoff: int = 0
    level: int = 0

    @property
    def name(self) -> str:
        """Name in settings: ``ndcg@10``, ``recall(rel=2)@1000``."""
        return self._spelt(self.kind, f"(rel={self.level})")

    @property
    def label(self) -> str:
        """Label for people: ``nDCG@10``, ``Recall@1000 (grade ≥ 2)``."""
        return self._spelt(_KINDS[self.kind].label, "") + (f" (grade ≥ {self.level})" if self.level else "")

    @property
    def key(self) -> str:
        """Name in Kubeflow: ``ndcg_at_10``, ``recall_rel_2_at_1000``."""
        return self._spelt(self.kind, f"_rel_{self.level}", "_at_")

    def _spelt(self, kind: str, level: str, at: str = "@") -> str:
        return kind + (level if self.level else "") + (f"{at}{self.cutoff}" if self.cutoff else "")

    @property
    def meaning(self) -> str:
        """Explanation in one sentence."""
        within = f", none beyond rank {self.cutoff}" if self.cutoff else ""
        text = _KINDS[self.kind].meaning.format(k=self.cutoff, within=within)
        return text + (f" Relevant from grade {self.level}." if self.level else "")

    @property
    def is_graded(self) -> bool:
        """Whether grades count as they are, so that no relevance level applies."""
        return self.kind == "ndcg"

    @property
    def _trec_name(self) -> str:
        kind = _KINDS[self.kind]
        return kind.cut.format(k=self.cutoff) if self.cutoff else kind.whole

    def _of(self, values: Mapping[str, float]) -> float:
        """Picks this measure's value among those that trec_eval computed for one query."""
        value = values[self._trec_name.replace(".", "_")]
        if self.kind == "mrr":
            # trec_eval has no cutoff here; below 1/K, the first relevant passage stands beyond rank K.
            return value if value >= 1 / self.cutoff else 0.0
        return value


def parse_measures(text: str, field: str = "measures") -> list[Measure]:
    """Parses ``"mrr@10, ndcg@10"``, in order, each once; a name of `PRESETS` stands for its measures.

    Raises:
        InputError: A name is unknown, or there is none; `field` is the setting to blame.
    """
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError("names no metric", field=field, hint=HINT)
    single = [each for name in names for each in PRESETS.get(name, name).split(",")]
    return list(dict.fromkeys(_parse_one(name, field) for name in single))


def _parse_one(name: str, field: str) -> Measure:
    match = _SPELLING.fullmatch(name)
    kind = _ALIASES.get(match[1], match[1]) if match else ""
    if match is None or kind not in _KINDS:
        raise InputError(
            f"{name!r} is no metric", field=field, hint=f"{HINT}; or name a benchmark: {', '.join(PRESETS)}"
        )
    measure = Measure(kind, int(match[3] or 0), int(match[2] or 0))
    if not measure._trec_name:
        problem = "has no cutoff" if measure.cutoff else "needs a cutoff"
        raise InputError(f"{name!r} is no metric: {kind} {problem}", field=field, hint=HINT)
    if measure.is_graded and measure.level:
        raise InputError(f"{name!r} is no metric: {kind} takes grades as they are", field=field, hint=HINT)
    return measure


def score_queries(
    measures: Iterable[Measure],
    qrels: Qrels,
    run: Rankings,
    *,
    relevance_level: int = 1,
    highest_level: int = sys.maxsize,
) -> dict[str, dict[str, float]]:
    """Computes every metric of every judged query.

    nDCG takes the grade as gain and log2(rank + 1) as discount; it has no relevance level. The others are binary.

    Args:
        measures: What to compute.
        qrels: Grade by passage id, by query id.
        run: Score by passage id, by query id; queries without judgments are ignored.
        relevance_level: Lowest grade that counts as relevant in binary metrics (trec_eval's ``-l``) that do not say it
            themselves.
        highest_level: Levels above it are lowered to it.

    Returns:
        Value by query id, by name of the measure; the queries are those of `qrels` in their order, absent ones with 0.
    """
    measures = list(measures)
    grades = {query: dict(judgments) for query, judgments in qrels.items()}
    judged = {query: run[query] for query in qrels if run.get(query)}
    levels = {m: min(m.level or relevance_level, highest_level) for m in measures}
    values = {level: _values(measures, levels, level, grades, judged) for level in set(levels.values())}
    return {
        m.name: {query: m._of(found[query]) if query in found else 0.0 for query in qrels}
        for m, found in ((m, values[levels[m]]) for m in measures)
    }


def _values(
    measures: list[Measure],
    levels: Mapping[Measure, int],
    level: int,
    grades: dict[str, dict[str, int]],
    run: Rankings,
) -> dict[str, dict[str, float]]:
    """Computes the measures of one level by trec_eval: value by its name, by query id."""
    names = {m._trec_name for m in measures if levels[m] == level}
    values: dict[str, dict[str, float]] = pytrec_eval.RelevanceEvaluator(grades, names, relevance_level=level).evaluate(
        run
    )
    return values


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Means over the judged queries (one at least) of every metric that `score_queries` returned."""
    return {name: math.fsum(values.values()) / len(values) for name, values in scores.items()}


def mean_of_systems(collections: list[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Unweighted mean of every measure, of the systems that were measured everywhere.

    Args:
        collections: Value by measure by system, for every part or collection.
    """
    everywhere = [name for name in collections[0] if all(name in systems for systems in collections)]
    return {
        name: {
            measure: sum(systems[name][measure] for systems in collections) / len(collections)
            for measure in collections[0][name]
        }
        for name in everywhere
    }
