"""Renders what was mined as a self-contained HTML page: ranks, scores, overlap of the sources, likely false negatives."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_retriever.mining.selection import SPARSE, TEACHER
from llm_retriever.mining.statistics import SourceStatistics, Statistics
from llm_retriever.mining.summary import DROPPED, NAMES, headline, method, rank_bounds, share
from llm_retriever.reporting.plots import nice_ticks

BARS = 20
SCORE_BARS = 40
WIDTH, HEIGHT = 1000, 300


@dataclass(frozen=True)
class Series:
    """Bars of one colour.

    Attributes:
        kind: `positives` or `negatives`: the CSS class.
        values: Heights, at least 0.
        titles: What each bar says when it is pointed at.
    """

    kind: str
    values: Sequence[float]
    titles: Sequence[str]


def page(statistics: Statistics, recipe: Mapping[str, Any]) -> str:
    """Renders the page.

    Args:
        statistics: Complete.
        recipe: That of the manifest.
    """
    import jinja2
    from markupsafe import Markup

    loaders = [jinja2.PackageLoader(f"llm_retriever.{package}", ".") for package in ("mining", "reporting")]
    pages = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    pages.undefined = jinja2.StrictUndefined
    pages.globals |= {"share": share, "plot": Markup}
    return pages.get_template("picture.html.jinja").render(
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


def _ranks(source: SourceStatistics, depth: int) -> str:
    bounds = rank_bounds(depth, BARS)
    numbers = source.negatives_by_rank(bounds)
    titles = [f"{_range(bounds, i)}: {number:,} negatives" for i, number in enumerate(numbers)]
    return bar_plot([Series("negatives", numbers, titles)], "negatives", ["1", "rank", f"{depth:,}"])


def _above(source: SourceStatistics, depth: int) -> str:
    bounds = rank_bounds(depth, BARS)
    values = [100 * value for value in source.above_by_rank(bounds)]
    titles = [f"{_range(bounds, i)}: {value:.1f}%" for i, value in enumerate(values)]
    return bar_plot([Series("positives", values, titles)], "% above their positive", ["1", "rank", f"{depth:,}"])


def _range(bounds: Sequence[int], bar: int) -> str:
    return f"ranks {bounds[bar] + 1:,}–{bounds[bar + 1]:,}"


def _scores(source: SourceStatistics, unit: str) -> str:
    """Plots shares of the positives and of the negatives by score, one behind the other."""
    both = source.score_arrays()
    if not any(len(scores) for scores in both):
        return ""
    low, high = (float(edge(np.concatenate(both))) for edge in (np.min, np.max))
    edges = np.linspace(low, high if high > low else low + 1, SCORE_BARS + 1)
    series = []
    for kind, scores in zip(("positives", "negatives"), both, strict=True):
        shares = 100 * np.histogram(scores, edges)[0] / max(len(scores), 1)
        titles = [f"{edges[i]:.2f} to {edges[i + 1]:.2f}: {value:.1f}% of the {kind}" for i, value in enumerate(shares)]
        series.append(Series(kind, shares.tolist(), titles))
    return bar_plot(series, "% of each", [f"{low:.4g}", unit, f"{high:.4g}"])


def _overlap(statistics: Statistics) -> str:
    shares = [100 * value for value in statistics.overlap()]
    if not shares:
        return ""
    titles = [f"top {border:,}: {value:.1f}%" for border, value in zip(statistics.borders, shares, strict=True)]
    return bar_plot(
        [Series("negatives", shares, titles)], "% in common", [f"{border:,}" for border in statistics.borders], "each"
    )


def bar_plot(series: Sequence[Series], y_label: str, x_labels: Sequence[str], spread: str = "ends") -> str:
    """Plots bars that stretch with the page, in front of a grid; the words around them do not.

    Args:
        series: Bars of the same number, one behind the other.
        y_label: What their height is.
        x_labels: Below them.
        spread: `ends` = from the left edge to the right; `each` = one below each bar.
    """
    ticks = nice_ticks(0.0, max((value for one in series for value in one.values), default=0.0) or 1.0, steps=4)
    top = ticks[-1]
    grid = "".join(
        f'<line class="grid" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        for y in (HEIGHT * i / (len(ticks) - 1) for i in range(len(ticks)))
    )
    bars = "".join(_bar(one, i, top) for one in series for i in range(len(one.values)) if one.values[i])
    labels = "".join(f"<span>{html.escape(label)}</span>" for label in x_labels)
    return (
        f'<div class="curve bars" role="img" aria-label="{html.escape(y_label)}">'
        f'<div class="y-label">{html.escape(y_label)}</div>'
        f'<div class="y-ticks">{"".join(f"<span>{tick:,.6g}</span>" for tick in reversed(ticks))}</div>'
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">{grid}{bars}</svg>'
        f'<div class="x-ticks {spread}">{labels}</div></div>'
    )


def _bar(series: Series, place: int, top: float) -> str:
    width = WIDTH / len(series.values)
    height = HEIGHT * series.values[place] / top
    return (
        f'<rect class="{series.kind}" x="{width * (place + 0.08):.1f}" width="{width * 0.84:.1f}" '
        f'y="{HEIGHT - height:.1f}" height="{height:.1f}"><title>{html.escape(series.titles[place])}</title></rect>'
    )
