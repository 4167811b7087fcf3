"""Charts the attention analysis: layers by columns, one map a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from llm_retriever.reporting.charts import COLOURS, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ASIDE = ("beginning of sequence", "prompt", "query")
"""Columns of a heat map that neither decide the scale nor are boxed: the question is whether the passage or [E] is looked at."""
SHORT = {"beginning of sequence": "BOS"}
BIN = "passage"


def heat_map(names: Sequence[str], layers: Sequence[Sequence[float]], largest: float, label: str) -> Markup:
    """One model's map: the more attention, the stronger the colour; the largest value of passage and [E] is boxed.

    Args:
        names: Names of the columns; those of the passage's parts begin with `passage`, and stand side by side.
        layers: Values by layer, the first layer on top.
        largest: Value that gets the full colour; beyond it nothing gets stronger.
        label: What is shown, for those who do not see it.
    """
    starts, widths = list[float](), list[float]()
    for i, name in enumerate(names):
        joined = i and name.startswith(BIN) and names[i - 1].startswith(BIN)
        end = starts[-1] + widths[-1] if starts else 0.0
        starts.append(end + (0.0 if joined or not i else 0.5))
        widths.append(1.0 if name.startswith(BIN) else 3.6)

    def paint(axes: Axes) -> None:
        for row, layer in enumerate(layers, 1):
            for x, width, value in zip(starts, widths, layer, strict=True):
                strength = round(math.sqrt(min(1.0, max(0.0, value / (largest or 1.0)))), 3)
                axes.broken_barh([(x, width)], (row - 0.5, 1), color=COLOURS["accent"], alpha=strength, linewidth=0)
            value, at = max((v, i) for i, v in enumerate(layer) if names[i] not in ASIDE)
            if value:
                box: dict[str, Any] = {"facecolor": "none", "edgecolor": COLOURS["text"], "linewidth": 1.0}
                axes.broken_barh([(starts[at], widths[at])], (row - 0.5, 1), **box)
        axes.set(ylim=(len(layers) + 0.5, 0.5), xlim=(0, starts[-1] + widths[-1]), ylabel="layer")
        axes.set_xticks(*_column_labels(names, starts, widths))
        axes.set_yticks(sorted({1, len(layers), *range(1, len(layers), max(1, math.ceil(len(layers) / 6)))}))
        axes.grid(visible=False)

    return drawn(max(1.2, min(4.0, 0.5 + 0.14 * len(layers))), label, paint)


def _column_labels(
    names: Sequence[str], starts: Sequence[float], widths: Sequence[float]
) -> tuple[list[float], list[str]]:
    """A word below every column that is no part of the passage, and one below the passage."""
    bins = [i for i, name in enumerate(names) if name.startswith(BIN)]
    places = {SHORT.get(n, n): starts[i] + widths[i] / 2 for i, n in enumerate(names) if i not in bins}
    if bins:
        places[BIN] = (starts[bins[0]] + starts[bins[-1]] + 1.0) / 2
    return list(places.values()), list(places)


def largest_attention(attention: Mapping[str, Any]) -> float:
    """Largest value of all models on the passage and [E]; it gets the full colour."""
    kept = [i for i, name in enumerate(attention["columns"]) if name not in ASIDE]
    return max(layer[i] for model in attention["models"].values() for layer in model["layers"] for i in kept)
