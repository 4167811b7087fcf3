"""Charts of the pages, drawn by matplotlib as inline SVG in the page's own colours.

matplotlib draws in the colours of the light theme; in the SVG each becomes the CSS variable of that name, so that one picture
suits light and dark. Words stay text, in the page's font.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "surface": "#ffffff",
    "text": "#1c2024",
    "muted": "#5b6470",
    "line": "#dfe3e8",
    "accent": "#1f5fbf",
    "better": "#18794e",
    "worse": "#b4231f",
}
"""By the name of the CSS variable in `style.html.jinja`."""
WIDTH = 4.4
"""Inches, 317 points: as wide as a telephone, where words keep their size; wider pages enlarge it a little."""
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "text.color": COLOURS["text"],
    "lines.linewidth": 1.4,
    "path.simplify_threshold": 0.2,
}
CELLS = 20
"""Of the scatter plot, along each side."""
LARGEST_DISC = 220.0
CURVE_POINTS = 400
LONGEST_NAME = 28
Points = Sequence[tuple[float, float]]


def drawn(height: float, label: str, paint: Callable[[Axes], None], width: float = WIDTH) -> Markup:
    """Draws a chart.

    Args:
        height: In inches.
        label: What is shown, for those who do not see it.
        paint: Draws into the axes.
        width: In inches.

    Returns:
        An `<svg>` that is as wide as what it is in.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        written = io.StringIO()
        told = {"Date": None, "Creator": None}
        figure.savefig(written, format="svg", bbox_inches="tight", transparent=True, metadata=told)
    return _for_the_page(written.getvalue(), label)


def _for_the_page(svg: str, label: str) -> Markup:
    body = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    size = re.search(r'viewBox="([^"]+)"', body)
    assert size is not None  # noqa: S101 - matplotlib writes one
    head = f'<svg class="chart" viewBox="{size[1]}" role="img" aria-label="{html.escape(label, quote=True)}"'
    body = re.sub(r"<svg [^>]*>", f'{head} xmlns:xlink="http://www.w3.org/1999/xlink">', body, count=1)
    # Font and line joins are the page's; a style within an SVG holds for the whole page.
    body = re.sub(r"font-family: [^;\"]+; ?|<style.*?</style>", "", body, flags=re.DOTALL)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{name})")
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    # Several charts stand in one page, in which an id may stand once.
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    return Markup(body)  # noqa: S704 - matplotlib escapes text


@dataclass(frozen=True)
class Difference:
    """A row of the forest plot: a mean difference and its confidence interval (equal ends where there is none)."""

    label: str
    mean: float
    interval: tuple[float, float]
    is_significant: bool


def forest_plot(differences: Sequence[Difference]) -> Markup:
    """Plots mean differences with their confidence intervals, one row each, over a common axis with a line at 0."""

    def paint(axes: Axes) -> None:
        for place, d in enumerate(differences):
            colour = COLOURS["muted"] if not d.is_significant else COLOURS["better" if d.mean > 0 else "worse"]
            reach = [[max(0.0, d.mean - d.interval[0])], [max(0.0, d.interval[1] - d.mean)]]
            face = colour if d.is_significant else COLOURS["surface"]
            axes.errorbar(d.mean, -place, xerr=reach, fmt="o", color=colour, markerfacecolor=face, capsize=3)
            axes.text(1.02, -place, signed(d.mean), va="center", transform=axes.get_yaxis_transform())
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8, linestyle="--")
        axes.set_yticks([-i for i in range(len(differences))], [_cut(d.label) for d in differences])
        axes.tick_params(axis="y", colors=COLOURS["text"])
        axes.set_ylim(0.6 - len(differences), 0.6)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)

    return drawn(0.55 + 0.27 * len(differences), "Differences with confidence intervals", paint, width=3.7)


def scatter_plot(points: Iterable[tuple[float, float]], x_label: str, y_label: str) -> Markup:
    """Plots queries as ``(x, y)`` in [0, 1], in a grid of cells; the more queries, the larger a cell's disc.

    Above the diagonal the system of the y axis is better.
    """
    cells = Counter((_cell(x), _cell(y)) for x, y in points)
    # Queries that both systems answer perfectly can be most of them; the scale is that of the differences.
    largest = max((n for (x, y), n in cells.items() if x != y), default=max(cells.values(), default=1))

    def paint(axes: Axes) -> None:
        axes.axline((0, 0), slope=1, color=COLOURS["muted"], linewidth=0.8, linestyle="--")
        for side, is_on in {"even": 0, "better": 1, "worse": -1}.items():
            chosen = [(x, y, n) for (x, y), n in cells.items() if (y > x) - (y < x) == is_on]
            areas = [max(8.0, LARGEST_DISC * min(1.0, n / largest)) for _, _, n in chosen]
            style: dict[str, Any] = {"color": COLOURS.get(side, COLOURS["muted"]), "edgecolors": COLOURS["surface"]}
            places = ([x / CELLS for x, _, _ in chosen], [y / CELLS for _, y, _ in chosen])
            axes.scatter(*places, areas, alpha=0.65, **style)
        axes.set(xlim=(-0.06, 1.06), ylim=(-0.06, 1.06), xlabel=x_label, ylabel=y_label, aspect="equal")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])

    return drawn(3.4, f"{y_label} against {x_label}, query by query", paint, width=3.4)


def _cell(value: float) -> int:
    return min(CELLS, max(0, round(value * CELLS)))


def curve_plot(points: Points, x_label: str, y_label: str, smooth: Points = ()) -> Markup:
    """Plots a line through ``(x, y)``, thinned to 400 means of neighbours; "" where there are fewer than two points.

    Args:
        points: Ascending in x; those that are not finite are left out.
        x_label: What x is.
        y_label: What y is.
        smooth: A second line in front of the first, which is then pale.
    """
    lines = [thinned([(x, y) for x, y in line if math.isfinite(x) and math.isfinite(y)]) for line in (points, smooth)]
    if len(lines[0]) < 2:
        return Markup()

    def paint(axes: Axes) -> None:
        for line, alpha in zip(lines, (0.4 if smooth else 1.0, 1.0), strict=True):
            axes.plot([x for x, _ in line], [y for _, y in line], color=COLOURS["accent"], alpha=alpha)
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(lines[0][0][0], lines[0][-1][0]))
        axes.set_ylim(bottom=min(0.0, *(y for _, y in lines[0])))
        _plain_ticks(axes)

    return drawn(2.0, f"{y_label} over {x_label}", paint)


def thinned(points: Points) -> list[tuple[float, float]]:
    """Thins points to at most 400 means of neighbours; the first and the last x stay where they are."""
    size = math.ceil(len(points) / CURVE_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    if len(means) > 1:
        means[0], means[-1] = (points[0][0], means[0][1]), (points[-1][0], means[-1][1])
    return means


@dataclass(frozen=True)
class Bars:
    """Bars of one colour: `accent` or `worse`, and heights that are at least 0."""

    colour: str
    values: Sequence[float]


def bar_plot(series: Sequence[Bars], edges: Sequence[float] | Sequence[str], x_label: str, y_label: str) -> Markup:
    """Plots bars of several series one behind the other.

    Args:
        series: Of the same number of bars.
        edges: One more number than there are bars, between which they stand; or a word for each bar.
        x_label: What is below them.
        y_label: What their height is.
    """

    def paint(axes: Axes) -> None:
        named = [edge for edge in edges if isinstance(edge, str)]
        borders = [float(i) for i in range(len(named) + 1)] if named else [float(edge) for edge in edges]
        starts = [(a + b) / 2 for a, b in itertools.pairwise(borders)]
        widths = [0.86 * (b - a) for a, b in itertools.pairwise(borders)]
        for bars in series:
            axes.bar(starts, bars.values, widths, color=COLOURS[bars.colour], alpha=0.6)
        axes.set(xlabel=x_label, ylabel=y_label, xlim=(borders[0], borders[-1]))
        axes.grid(axis="x", visible=False)
        _plain_ticks(axes)
        if named:
            axes.set_xticks(starts, named)

    return drawn(1.9, f"{y_label} by {x_label}", paint, width=3.2)


@dataclass(frozen=True)
class Point:
    """A variant: what it costs, and how good it is."""

    name: str
    cost: float
    quality: float


def frontier(points: Sequence[Point], more_is_better: bool) -> list[Point]:
    """Picks the points that no other one beats (as good in both and better in one), by cost.

    Args:
        points: Points with costs above 0.
        more_is_better: Whether a higher cost is the better one, as of passages per second.
    """
    sign = 1 if more_is_better else -1

    def beats(a: Point, b: Point) -> bool:
        gains = (sign * (a.cost - b.cost), a.quality - b.quality)
        return min(gains) >= 0 and max(gains) > 0

    return sorted((p for p in points if not any(beats(other, p) for other in points)), key=lambda p: p.cost)


def frontier_plot(points: Sequence[Point], x_label: str, y_label: str, more_is_better: bool) -> Markup:
    """Plots quality against cost, with a line through the points of the frontier; names stand beside it by height.

    Args:
        points: Two at least, with costs above 0 that differ.
        x_label: What the cost is.
        y_label: What the quality is.
        more_is_better: Whether a higher cost is the better one.
    """
    best, by_height = frontier(points, more_is_better), sorted(points, key=lambda p: p.quality)
    is_wide = max(p.cost for p in points) >= 4 * min(p.cost for p in points)

    def paint(axes: Axes) -> None:
        axes.plot([p.cost for p in best], [p.quality for p in best], color=COLOURS["accent"])
        if is_wide:
            axes.set_xscale("log")
        _plain_ticks(axes, is_wide)
        axes.margins(0.08)
        for place, p in enumerate(by_height):
            colour = COLOURS["accent" if p in best else "muted"]
            axes.plot(p.cost, p.quality, "o", color=colour, markersize=5)
            axes.annotate(
                _cut(p.name),
                (p.cost, p.quality),
                xytext=(1.06, (place + 0.5) / len(points)),
                textcoords="axes fraction",
                color=COLOURS["text" if p in best else "muted"],
                va="center",
                arrowprops={"arrowstyle": "-", "color": COLOURS["line"], "linewidth": 0.6, "shrinkB": 4},
            )
        axes.set(xlabel=x_label, ylabel=y_label)

    return drawn(max(2.0, 0.6 + 0.19 * len(points)), f"{y_label} against {x_label}", paint, width=3.4)


def _plain_ticks(axes: Axes, is_wide: bool = False) -> None:
    """Few ticks below, written in full; by powers of ten where that is so wide a range."""
    from matplotlib import ticker

    if is_wide:
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 3.0), numticks=5))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.6g}"))


def signed(value: float, digits: int = 3) -> str:
    """Formats a difference: ``+0.041``, ``−0.020``, ``0.000``."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else "−") + text


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
