"""Charts of the report, as HTML and inline SVG that take their colours from the page and fit any width.

Lines and bars live in SVG that stretches; every word and number is HTML or unscaled text, so that it stays readable on a
narrow screen. Colours are the page's CSS variables, so that one page suits light and dark.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

SCATTER_SIZE = 340
SCATTER_MARGIN = 78
SCATTER_CELLS = 20
LARGEST_DISC = 13.0
CURVE_POINTS = 400


@dataclass(frozen=True)
class Difference:
    """A row of the forest plot: a mean difference and its confidence interval (equal ends where there is none)."""

    label: str
    mean: float
    interval: tuple[float, float]
    is_significant: bool


def nice_ticks(low: float, high: float, steps: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover `low` to `high` in about `steps` steps."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / steps))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= steps)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def signed(value: float, digits: int = 3) -> str:
    """Formats a difference: ``+0.041``, ``−0.020``, ``0.000``."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def forest_plot(differences: Sequence[Difference]) -> str:
    """Plots mean differences with their confidence intervals, one row each, over a common axis with a line at 0."""
    ends = [end for d in differences for end in (*d.interval, d.mean, 0.0)]
    ticks = nice_ticks(min(ends), max(ends))
    low, high = ticks[0], ticks[-1]

    def share(value: float) -> str:
        return f"{3 + 94 * (value - low) / ((high - low) or 1):.2f}%"

    rows = "".join(_forest_row(d, ticks, share) for d in differences)
    labels = "".join(f'<span style="left:{share(t)}">{_tick(t)}</span>' for t in ticks)
    return (
        f'<div class="forest" role="img" aria-label="Differences with confidence intervals">{rows}'
        f'<div class="label"></div><div class="ticks">{labels}</div><div class="value"></div></div>'
    )


def _forest_row(d: Difference, ticks: Sequence[float], share: Callable[[float], str]) -> str:
    low, high = d.interval
    side = "better" if d.mean > 0 else "worse"
    kind = side if d.is_significant else "open"
    grid = "".join(
        f'<line class="{"zero" if t == 0 else "grid"}" x1="{share(t)}" x2="{share(t)}" y1="0" y2="100%"/>'
        for t in ticks
    )
    whiskers = "".join(f'<line class="{kind}" x1="{share(x)}" x2="{share(x)}" y1="13" y2="23"/>' for x in d.interval)
    return (
        f'<div class="label">{html.escape(d.label)}</div><svg class="plot" width="100%" height="36">{grid}'
        f'<line class="{kind}" x1="{share(low)}" x2="{share(high)}" y1="18" y2="18"/>{whiskers}'
        f'<circle class="{kind}" cx="{share(d.mean)}" cy="18" r="5"/></svg><div class="value">{signed(d.mean)}</div>'
    )


def scatter_plot(points: Iterable[tuple[float, float]], x_label: str, y_label: str) -> str:
    """Plots queries as ``(x, y)`` in [0, 1], in a grid of cells; the more queries, the larger a cell's disc.

    Above the diagonal the system of the y axis is better.
    """
    cells = Counter((_cell(x), _cell(y)) for x, y in points)
    # Queries that both systems answer perfectly can be most of them; the scale is that of the differences.
    largest = max((n for (x, y), n in cells.items() if x != y), default=max(cells.values(), default=1))
    discs = "".join(_disc(x, y, n, largest) for (x, y), n in sorted(cells.items(), key=lambda item: -item[1]))
    a, b = SCATTER_MARGIN, SCATTER_MARGIN + SCATTER_SIZE
    marks = "".join(_scatter_mark(v / 4) for v in range(5))
    size = SCATTER_SIZE + SCATTER_MARGIN + 16
    middle = SCATTER_MARGIN + SCATTER_SIZE / 2
    return (
        f'<svg class="plot scatter" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{html.escape(y_label)} against {html.escape(x_label)}, query by query">'
        f'{marks}<line class="diagonal" x1="{a}" y1="{16 + SCATTER_SIZE}" x2="{b}" y2="16"/>{discs}'
        f'<text x="{middle}" y="{size - 4}" text-anchor="middle">{html.escape(x_label)}</text>'
        f'<text transform="translate(12 {16 + SCATTER_SIZE / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text></svg>"
    )


def _cell(value: float) -> int:
    return min(SCATTER_CELLS, max(0, round(value * SCATTER_CELLS)))


def _disc(x: int, y: int, number: int, largest: int) -> str:
    cx = SCATTER_MARGIN + SCATTER_SIZE * x / SCATTER_CELLS
    cy = 16 + SCATTER_SIZE * (1 - y / SCATTER_CELLS)
    radius = min(LARGEST_DISC, max(2.5, LARGEST_DISC * math.sqrt(number / largest)))
    side = "better" if y > x else "worse" if y < x else "even"
    queries = "query" if number == 1 else "queries"
    title = f"<title>{number} {queries}</title>"
    return f'<circle class="{side}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}">{title}</circle>'


def _scatter_mark(value: float) -> str:
    x, y = SCATTER_MARGIN + SCATTER_SIZE * value, 16 + SCATTER_SIZE * (1 - value)
    left, right, top, bottom = SCATTER_MARGIN, SCATTER_MARGIN + SCATTER_SIZE, 16, 16 + SCATTER_SIZE
    return (
        f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>'
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>'
        f'<text x="{x}" y="{bottom + 26}" text-anchor="middle">{value:g}</text>'
        f'<text x="{left - 16}" y="{y + 4}" text-anchor="end">{value:g}</text>'
    )


def curve_plot(points: Sequence[tuple[float, float]], x_label: str, y_label: str) -> str:
    """Plots a line through ``(x, y)``, thinned to 400 means of neighbours; the words around it do not scale with it."""
    shown = thinned([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
    if len(shown) < 2:
        return ""
    ticks = nice_ticks(min(0.0, *(y for _, y in shown)), max(y for _, y in shown), steps=4)
    low, high = ticks[0], ticks[-1]
    first, last = shown[0][0], shown[-1][0]
    line = " ".join(
        f"{1000 * (x - first) / ((last - first) or 1):.1f},{300 - 300 * (y - low) / ((high - low) or 1):.1f}"
        for x, y in shown
    )
    grid = "".join(
        f'<line class="grid" x1="0" x2="1000" y1="{300 - 300 * i / (len(ticks) - 1):.1f}" '
        f'y2="{300 - 300 * i / (len(ticks) - 1):.1f}"/>'
        for i in range(len(ticks))
    )
    y_ticks = "".join(f"<span>{_tick(t)}</span>" for t in reversed(ticks))
    return (
        f'<div class="curve" role="img" aria-label="{html.escape(y_label)} over {html.escape(x_label)}">'
        f'<div class="y-label">{html.escape(y_label)}</div><div class="y-ticks">{y_ticks}</div>'
        f'<svg class="plot" viewBox="0 0 1000 300" preserveAspectRatio="none">{grid}<polyline points="{line}"/></svg>'
        f'<div class="x-ticks"><span>{_tick(points[0][0])}</span><span>{html.escape(x_label)}</span>'
        f"<span>{_tick(points[-1][0])}</span></div></div>"
    )


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Thins points to at most 400 means of neighbours; the first and the last x stay where they are."""
    size = math.ceil(len(points) / CURVE_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    if len(means) > 1:
        means[0], means[-1] = (points[0][0], means[0][1]), (points[-1][0], means[-1][1])
    return means


def _tick(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−")
