"""Renders what was mined as a self-contained HTML page: ranks, scores, overlap of the sources, likely false negatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from llm_retriever.mining.selection import SPARSE, TEACHER
from llm_retriever.mining.statistics import SourceStatistics, Statistics
from llm_retriever.mining.summary import DROPPED, NAMES, headline, method, rank_bounds, share
from llm_retriever.reporting.charts import Bars, bar_plot
from llm_retriever.reporting.report import pages

BARS = 20
SCORE_BARS = 40


def page(statistics: Statistics, recipe: Mapping[str, Any]) -> str:
    """Renders the page.

    Args:
        statistics: Complete.
        recipe: That of the manifest.
    """
    templates = pages()
    templates.globals["share"] = share
    return templates.get_template("mining.html.jinja").render(
        headline=headline(statistics),
        method=method(recipe),
        counts=statistics.counts,
        wanted=statistics.wanted,
        dropped={why: statistics.counts["dropped"][reason] for reason, why in DROPPED.items()},
        sources=[_figures(name, source, statistics.depth) for name, source in statistics.sources.items()],
        overlap=_overlap(statistics),
    )


def _figures(name: str, source: SourceStatistics, depth: int) -> dict[str, Any]:
    unit = {SPARSE: "BM25 score", TEACHER: "the teacher's score"}.get(name, "inner product")
    return {
        "name": NAMES[name],
        "counts": source.counts,
        "unit": unit,
        "ranks": _ranks(source, depth),
        "above": _above(source, depth),
        "scores": _scores(source, unit),
    }


def _ranks(source: SourceStatistics, depth: int) -> Markup:
    bounds = rank_bounds(depth, BARS)
    return bar_plot([Bars("accent", source.negatives_by_rank(bounds))], bounds, "rank", "negatives")


def _above(source: SourceStatistics, depth: int) -> Markup:
    bounds = rank_bounds(depth, BARS)
    shares = [100 * value for value in source.above_by_rank(bounds)]
    return bar_plot([Bars("worse", shares)], bounds, "rank", "% above their positive")


def _scores(source: SourceStatistics, unit: str) -> Markup:
    """Plots shares of the positives and of the negatives by score, one behind the other."""
    both = source.score_arrays()
    if not any(len(scores) for scores in both):
        return Markup()
    low, high = (float(edge(np.concatenate(both))) for edge in (np.min, np.max))
    edges = np.linspace(low, high if high > low else low + 1, SCORE_BARS + 1)
    shares = [(100 * np.histogram(scores, edges)[0] / max(len(scores), 1)).tolist() for scores in both]
    series = [Bars(colour, values) for colour, values in zip(("worse", "accent"), shares, strict=True)]
    return bar_plot(series, edges.tolist(), unit, "% of each")


def _overlap(statistics: Statistics) -> Markup:
    shares = [100 * value for value in statistics.overlap()]
    if not shares:
        return Markup()
    return bar_plot(
        [Bars("accent", shares)], [f"{border:,}" for border in statistics.borders], "top ranks", "% in common"
    )
