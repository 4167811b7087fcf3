"""Charts the attention analysis: layers by columns, one map a model, as HTML and inline SVG.

Colours are the page's CSS variables, and words are HTML beside the stretched SVG, as in `llm_retriever.reporting.plots`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ASIDE = ("beginning of sequence", "prompt", "query")
"""Columns that neither decide the scale nor are boxed: the question is whether the passage or [E] is looked at."""
SHORT = {"beginning of sequence": "BOS"}
BIN = "passage"
GAP = 0.5
WIDE = 3.6
LABELLED_LAYERS = 6


@dataclass(frozen=True)
class Column:
    """A column of a map: its name, and where it lies in units of a passage bin."""

    name: str
    start: float
    width: float

    @property
    def middle(self) -> float:
        """Its centre."""
        return self.start + self.width / 2


def columns(names: Sequence[str]) -> list[Column]:
    """Places the columns from left to right: bins of the passage side by side, the others wider and set apart."""
    placed: list[Column] = []
    for name in names:
        in_passage = name.startswith(BIN)
        end = placed[-1].start + placed[-1].width if placed else 0.0
        joined = in_passage and placed and placed[-1].name.startswith(BIN)
        placed.append(Column(name, end + (GAP if placed and not joined else 0.0), 1.0 if in_passage else WIDE))
    return placed


def scale(attention: Mapping[str, Any]) -> float:
    """Largest value of all models on the passage and [E]; it gets the full colour."""
    kept = [i for i, name in enumerate(attention["columns"]) if name not in ASIDE]
    return max(layer[i] for model in attention["models"].values() for layer in model["layers"] for i in kept)


def heat_map(names: Sequence[str], layers: Sequence[Sequence[float]], largest: float, label: str) -> str:
    """One model's map: the more attention, the stronger the colour; the largest value of the passage and
    [E] is boxed in each layer.

    Args:
        names: Names of the columns.
        layers: Values by layer, the first layer on top.
        largest: Value that gets the full colour; beyond it nothing gets stronger.
        label: What is shown, for those who do not see it.
    """
    placed = columns(names)
    end = placed[-1].start + placed[-1].width
    cells = "".join(
        _layer(number, layer, placed, largest or 1.0) + _box(number, layer, placed)
        for number, layer in enumerate(layers)
    )
    below = "".join(
        f'<span style="left:{100 * x / end:.2f}%">{html.escape(text)}</span>' for text, x in _labels(placed)
    )
    return (
        f'<div class="heat" role="img" aria-label="{html.escape(label)}"><div class="layers">{_numbers(len(layers))}</div>'
        f'<svg class="plot" viewBox="0 0 {end:g} {len(layers)}" preserveAspectRatio="none" '
        f'style="height:{max(6.0, min(24.0, 0.9 * len(layers))):.1f}rem">{cells}</svg>'
        f'<div></div><div class="ticks">{below}</div></div>'
    )


def _layer(number: int, layer: Sequence[float], placed: Sequence[Column], largest: float) -> str:
    return "".join(
        f'<rect x="{c.start:g}" y="{number}" width="{c.width:g}" height="1" '
        f'fill-opacity="{math.sqrt(min(1.0, max(0.0, value / largest))):.3f}">'
        f"<title>layer {number + 1}, {html.escape(c.name)}: {value:.4f}</title></rect>"
        for value, c in zip(layer, placed, strict=True)
    )


def _box(number: int, layer: Sequence[float], placed: Sequence[Column]) -> str:
    value, c = max(((v, c) for v, c in zip(layer, placed, strict=True) if c.name not in ASIDE), key=lambda x: x[0])
    return f'<rect class="peak" x="{c.start:g}" y="{number}" width="{c.width:g}" height="1"/>' if value else ""


def _labels(placed: Sequence[Column]) -> Iterator[tuple[str, float]]:
    """Yields a word below every column that is no bin, and one below the passage."""
    yield from ((SHORT.get(c.name, c.name), c.middle) for c in placed if not c.name.startswith(BIN))
    bins = [c for c in placed if c.name.startswith(BIN)]
    if bins:
        yield BIN, (bins[0].start + bins[-1].start + bins[-1].width) / 2


def _numbers(layers: int) -> str:
    """Renders the numbers of the first, the last and some layers between them, each at its layer's height."""
    step = max(1, math.ceil(layers / LABELLED_LAYERS))
    chosen = [n for n in range(0, layers, step) if n == 0 or layers - 1 - n >= step] + [layers - 1] * (layers > 1)
    return "".join(f'<span style="top:{100 * (n + 0.5) / layers:.2f}%">{n + 1}</span>' for n in chosen)
