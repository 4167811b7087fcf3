"""Tunes BM25: tries a grid of k1 and b on the queries of a split and takes what retrieves best."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_retriever.bm25.similarities import bm25
from llm_retriever.bm25.sparse import SparseIndex, without_own
from llm_retriever.data.collection import RELEVANT, Collection
from llm_retriever.errors import InputError
from llm_retriever.progress import Progress
from llm_retriever.settings import MiningSettings, is_unset

# Both settings of the field and Lucene's own default (1.2, 0.75) are among them.
K1 = (0.5, 0.7, 0.82, 0.9, 1.2, 1.5, 2.0)
B = (0.2, 0.4, 0.55, 0.68, 0.75, 0.9)
SPARE = 20


@dataclass(frozen=True)
class Tuning:
    """The grid and its values.

    Attributes:
        split: Where the queries are from.
        queries: How many of them were tried.
        metric: What was compared: ``mrr@10``.
        values: Mean of the metric by (k1, b), in the order of the grid.
    """

    split: str
    queries: int
    metric: str
    values: Mapping[tuple[float, float], float]

    @property
    def best(self) -> tuple[float, float]:
        """k1 and b of the highest value; of equal ones, the smallest k1, then the smallest b."""
        return max(self.values, key=self.values.__getitem__)

    def as_json(self) -> dict[str, Any]:
        """For manifests."""
        k1, b = self.best
        grid = [{"k1": k1, "b": b, self.metric: round(value, 6)} for (k1, b), value in self.values.items()]
        return {
            "split": self.split,
            "queries": self.queries,
            "metric": self.metric,
            "best": {"k1": k1, "b": b, self.metric: round(self.values[self.best], 6)},
            "grid": grid,
        }


def check_tunable(settings: MiningSettings, collection: Collection) -> None:
    """Checks the settings of tuning before any work.

    Raises:
        InputError: There is no such split, or k1 or b are both given and to be tuned.
    """
    if not settings.bm25_tune_split:
        return
    for name in ("bm25_k1", "bm25_b"):
        if not is_unset(getattr(settings, name)):
            raise InputError(
                "is given, and to be tuned as well", field=name, hint="leave it at -1, or empty bm25_tune_split"
            )
    if settings.bm25_tune_split not in collection.splits:
        raise InputError(
            f"there is no split {settings.bm25_tune_split!r}",
            field="bm25_tune_split",
            hint=f"the collection has {', '.join(collection.splits)}",
        )


def tune(
    index: SparseIndex,
    collection: Collection,
    settings: MiningSettings,
    grid: tuple[tuple[float, ...], tuple[float, ...]] = (K1, B),
) -> Tuning:
    """Searches the grid on the judged queries of `settings.bm25_tune_split`, or on a seeded sample of them.

    The metrics are those of evaluation, and so is what they leave out.

    Args:
        index: Searches.
        collection: Brings queries and judgments.
        settings: Split, metric, how many queries, seed.
        grid: The values of k1 and of b.

    Raises:
        InputError: No query of the split has a relevant passage.
    """
    from llm_retriever.metrics.measures import means, parse_measures, score_queries

    (measure,) = parse_measures(settings.bm25_tune_metric)
    queries, qrels = _sample(collection, settings)
    own = collection.own_passages(settings.bm25_tune_split)
    cells = [(k1, b) for k1 in grid[0] for b in grid[1]]
    values: dict[tuple[float, float], float] = {}
    with Progress("tune BM25", len(cells), "settings") as progress:
        for k1, b in cells:
            rankings = index.search(queries, measure.cutoff + SPARE, bm25(k1, b))
            run = {query: dict(without_own(query, ranking, own)) for query, ranking in rankings}
            values[k1, b] = means(score_queries([measure], qrels, run))[measure.name]
            progress.update()
    return Tuning(settings.bm25_tune_split, len(queries), measure.name, values)


def _sample(collection: Collection, settings: MiningSettings) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    split = settings.bm25_tune_split
    qrels = {q: grades for q, grades in collection.qrels(split).items() if max(grades.values()) >= RELEVANT}
    queries = {q: text for q, text in collection.queries(split).items() if q in qrels}
    if not queries:
        raise InputError(f"no query of {split!r} has a relevant passage", field="bm25_tune_split", hint="use another")
    if 0 < settings.bm25_tune_queries < len(queries):
        draw = random.Random(f"{settings.seed}:tune")  # noqa: S311 - a reproducible draw, no secret
        kept = set(draw.sample(list(queries), settings.bm25_tune_queries))
        queries = {q: text for q, text in queries.items() if q in kept}
    return queries, {q: qrels[q] for q in queries}
