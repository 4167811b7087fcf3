"""Plots quality against cost, a point a variant, with a line through those that no other beats in both (Pareto's frontier).

Only positions along the x axis stretch with the page. Words keep their size, and every name has a line of its own in the order
of the points' heights, so that names never meet, however close the points and narrow the screen.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from llm_retriever.reporting.plots import nice_ticks
from llm_retriever.reporting.verdict import label as metric_label

COSTS = (
    ("bytes_per_passage", "bytes per passage", False),
    ("passages_per_second", "passages encoded per second", True),
)
"""Key among the costs of a variant, what the axis says, and whether more of it is better."""
HEIGHT, EDGE, LINE_HEIGHT = 200, 14, 17
"""Pixels: of the plot, unless its names need more; above and below the outermost ticks; of a name."""
MOST_TICKS = 7
LEAST_SPAN = 1e-6
"""Values that differ by less get an axis around them."""
LONGEST_NAME = 21
NARROW, CHARACTER = 300, 6.5
"""Pixels: the width of the plot on a telephone, where names are kept off the points, and of a letter."""
AWAY = 15
"""Pixels from a point to its name."""
DECADES = ((1, 2, 5), (1, 3), (1,))


@dataclass(frozen=True)
class Point:
    """A variant: what it costs, and how good it is."""

    name: str
    cost: float
    quality: float


@dataclass(frozen=True)
class Axis:
    """Ticks, and a function that places a value between the first (0) and the last one (1)."""

    ticks: Sequence[float]
    place: Callable[[float], float]


def panels(comparison: Mapping[str, Any]) -> list[Markup]:
    """Plots each cost in which variants differ; quality is the primary metric on the first split."""
    metric, (split, results) = comparison["primary_metric"], next(iter(comparison["splits"].items()))
    drawn = []
    for key, says, more_is_better in COSTS:
        costs_by_name = {name: costs[key] for name, costs in comparison["costs"].items() if costs.get(key)}
        points = [Point(name, cost, results["systems"][name][metric]) for name, cost in costs_by_name.items()]
        if len(set(costs_by_name.values())) > 1:
            drawn.append(Markup(plot(points, says, f"{metric_label(metric)}, {split}", more_is_better)))  # noqa: S704
    return drawn


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


def plot(points: Sequence[Point], x_label: str, y_label: str, more_is_better: bool) -> str:
    """Renders one panel: HTML with an SVG that stretches sideways.

    Args:
        points: Two at least, with costs above 0 that differ.
        x_label: What the cost is.
        y_label: What the quality is.
        more_is_better: Whether a higher cost is the better one.
    """
    height = max(HEIGHT, LINE_HEIGHT * len(points))
    across, up = cost_axis([p.cost for p in points]), _linear([p.quality for p in points])

    def x(value: float) -> float:
        return 4 + 92 * across.place(value)

    def y(value: float) -> float:
        return EDGE + height * (1 - up.place(value))

    best = frontier(points, more_is_better)
    grid = "".join(f'<line class="grid" x1="0" x2="100%" y1="{y(t):.1f}" y2="{y(t):.1f}"/>' for t in up.ticks)
    line = "".join(
        f'<line class="front" x1="{x(a.cost):.2f}%" y1="{y(a.quality):.1f}" x2="{x(b.cost):.2f}%" y2="{y(b.quality):.1f}"/>'
        for a, b in itertools.pairwise(best)
    )
    placed = [(p, x(p.cost), y(p.quality)) for p in points]
    levels = name_levels([at for _, _, at in placed], 2 * EDGE + height)
    spots = [(NARROW * left / 100, top) for _, left, top in placed]
    names, discs = "", ""
    for (p, left, top), level in zip(placed, levels, strict=True):
        side = _side(NARROW * left / 100, level, CHARACTER * len(_short(p.name)), spots)
        names += _name(p, left, top, level, side, p in best)
        discs += f'<circle class="{_kind(p in best)}" cx="{left:.2f}%" cy="{top:.1f}" r="5"/>'
    return (
        f'<div class="frontier" role="img" aria-label="{html.escape(y_label)} against {html.escape(x_label)}">'
        f'<div class="y-label">{html.escape(y_label)}</div>'
        f'<div class="y-ticks">{_spans(up.ticks, lambda t: f"top:{y(t):.1f}px", _decimals)}</div>'
        f'<svg class="plot" width="100%" height="{2 * EDGE + height}">{grid}{line}{names}{discs}</svg>'
        f'<div class="x-ticks">{_spans(across.ticks, lambda t: f"left:{x(t):.2f}%", _counted)}</div>'
        f'<div class="x-label">{html.escape(x_label)}</div></div>'
    )


def _kind(is_best: bool) -> str:
    return "front" if is_best else "behind"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _side(x: float, level: float, width: float, spots: Sequence[tuple[float, float]]) -> int:
    """Chooses a name's side, 1 = right of its point, -1 = left: where it meets fewer points, else has more room."""

    def against(side: int) -> tuple[int, float]:
        near, far = x + side * AWAY / 2, x + side * (AWAY + width)
        hidden = sum(
            min(near, far) < left < max(near, far) and abs(top - level) < LINE_HEIGHT / 2 for left, top in spots
        )
        return hidden + 2 * (not 0 <= far <= NARROW), side * x

    return min((1, -1), key=against)


def _name(point: Point, x: float, y: float, level: float, side: int, is_best: bool) -> str:
    """Renders the name of a point, joined to it by a line where it had to give way."""
    anchor, lift = "start" if side > 0 else "end", level - y
    leader = f'<line class="leader" x1="0" y1="0" x2="{side * (AWAY - 3)}" y2="{lift:.1f}"/>' if abs(lift) > 3 else ""
    # A viewport of its own has its origin at a share of the width, from which all else is in pixels.
    return (
        f'<svg x="{x:.2f}%" y="{y:.1f}" class="mark">{leader}'
        f'<text class="{_kind(is_best)}" x="{side * AWAY}" y="{lift + 4:.1f}" text-anchor="{anchor}">'
        f"{html.escape(_short(point.name))}"
        f"<title>{html.escape(point.name)}: {point.quality:.3f}, {point.cost:,.6g}</title></text></svg>"
    )


def name_levels(heights: Sequence[float], size: float) -> list[float]:
    """Heights of the names: those of the points, moved apart to a line each, within `size` pixels.

    >>> name_levels([50.0, 52.0, 100.0], 200.0)
    [50.0, 67.0, 100.0]
    >>> name_levels([190.0, 191.0], 200.0)
    [174.5, 191.5]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    levels = [0.0] * len(heights)
    lowest = LINE_HEIGHT / 2
    for i in order:
        levels[i] = max(heights[i], lowest)
        lowest = levels[i] + LINE_HEIGHT
    highest = size - LINE_HEIGHT / 2
    for i in reversed(order):
        levels[i] = min(levels[i], highest)
        highest = levels[i] - LINE_HEIGHT
    return levels


def cost_axis(values: Sequence[float]) -> Axis:
    """Builds an axis of costs above 0: by powers of ten where the largest is four times the smallest, else linear."""
    low, high = min(values), max(values)
    if high < 4 * low:
        return _linear(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas in DECADES:
        every = [m * 10.0**power for power in powers for m in mantissas]
        ticks = [t for t, after in zip(every, [*every[1:], math.inf], strict=True) if after > low]
        ticks = [t for t, before in zip(ticks, [0.0, *ticks], strict=False) if before < high]
        if len(ticks) <= MOST_TICKS:
            break
    span = math.log(ticks[-1] / ticks[0])
    return Axis(ticks, lambda value: math.log(value / ticks[0]) / span)


def _linear(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    room = 0.0 if high - low > LEAST_SPAN else 0.05
    ticks = nice_ticks(low - room, high + room, steps=4)
    return Axis(ticks, lambda value: (value - ticks[0]) / (ticks[-1] - ticks[0]))


def _spans(ticks: Sequence[float], style: Callable[[float], str], write: Callable[[Sequence[float]], list[str]]) -> str:
    texts = zip(ticks, write(ticks), strict=True)
    return "".join(f'<span style="{style(tick)}">{text}</span>' for tick, text in texts)


def _decimals(ticks: Sequence[float]) -> list[str]:
    """Formats ticks with as many decimals as the step between them needs."""
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:.{digits}f}" for tick in ticks]


def _counted(ticks: Sequence[float]) -> list[str]:
    return [f"{tick:,.6g}" for tick in ticks]
