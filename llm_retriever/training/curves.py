"""Training curves as one self-contained HTML page: inline SVG, no script, nothing fetched."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from llm_retriever.progress import seconds_as_text
from llm_retriever.training.train import TrainingLog

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 300, 70, 20, 16, 40
MOST_POINTS = 1000
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #1f2933 }
h1 { font-size: 1.3rem } h2 { font-size: 1rem; margin: 1.5rem 0 .3rem }
svg { width: 100%; height: auto } text { font-size: 12px; fill: #52606d }
.axis { stroke: #cbd2d9 } .raw { fill: none; stroke: #9fb3c8; stroke-width: 1 }
.line { fill: none; stroke: #1565c0; stroke-width: 2 }
td { padding: 0 1.5rem 0 0 } td:last-child { font-variant-numeric: tabular-nums }
"""


def curves_html(log: TrainingLog, title: str) -> str:
    """A self-contained HTML page that plots loss and learning rate over the updates, as inline SVG.

    The loss is drawn twice: as it was, and as a moving average.

    Example:
        >>> page = curves_html(TrainingLog([{"step": 1, "loss": 2.0, "learning_rate": 0.1}], 1.0, 8), "tune")
        >>> page.count("<svg")
        2
    """
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><h1>{title}</h1>{_facts(log)}{_plot(log, 'loss', 'Loss')}{_plot(log, 'learning_rate', 'Learning rate')}"
        "</body></html>\n"
    )


def _facts(log: TrainingLog) -> str:
    numbers = log.metrics()
    rows = {
        "updates": f"{numbers['updates']:,}",
        "training pairs seen": f"{log.examples:,}",
        "time": seconds_as_text(log.seconds),
        "pairs per second": f"{numbers.get('pairs_per_second', 0):.3g}",
    }
    if log.steps:
        rows["loss, first and last tenth of the updates"] = f"{numbers['loss_start']:.4g} → {numbers['loss_end']:.4g}"
    return "<table>" + "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows.items()) + "</table>"


def _plot(log: TrainingLog, key: str, name: str) -> str:
    points = [(entry["step"], entry[key]) for entry in log.steps if math.isfinite(entry[key])]
    if not points:
        return f"<h2>{name}</h2><p>Nothing was trained.</p>"
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(0.0, min(ys)), max(ys) or 1.0
    drawn = _path(points, xs[0], xs[-1], low, high, "line")
    if key == "loss":
        smooth = list(zip(xs, _moving_average(ys), strict=True))
        drawn = _path(points, xs[0], xs[-1], low, high, "raw") + _path(smooth, xs[0], xs[-1], low, high, "line")
    return (
        f'<h2>{name}</h2><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} over the updates">'
        f"{_axes(xs[0], xs[-1], low, high)}{drawn}</svg>"
    )


def _moving_average(values: Sequence[float]) -> list[float]:
    """An exponential moving average over about a twentieth of the values, corrected for its start."""
    keep, total, weight, smooth = 1 - 1 / max(1.0, len(values) / 20), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + 1 - keep
        smooth.append(total / weight)
    return smooth


def _path(points: Sequence[tuple[float, float]], x0: float, x1: float, low: float, high: float, kind: str) -> str:
    every = max(1, len(points) // MOST_POINTS)
    shown = [*points[:-1:every], points[-1]]
    places = " ".join(f"{_across(x, x0, x1):.1f},{_down(y, low, high):.1f}" for x, y in shown)
    return f'<polyline class="{kind}" points="{places}"/>'


def _across(x: float, x0: float, x1: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)


def _down(y: float, low: float, high: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (y - low) / ((high - low) or 1.0))


def _axes(x0: float, x1: float, low: float, high: float) -> str:
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = low + share * (high - low)
        y = _down(value, low, high)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        x = x0 + share * (x1 - x0)
        parts.append(f'<text x="{_across(x, x0, x1):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{round(x):,}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 2}" text-anchor="middle">update</text>')
    return "".join(parts)
