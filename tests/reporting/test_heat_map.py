from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from llm_retriever.reporting.heat_map import columns, heat_map, scale

NAMES = ["beginning of sequence", "prompt", "passage 0–50 %", "passage 50–100 %", "[E]", "query"]
LAYERS = [[0.5, 0.2, 0.04, 0.01, 0.02, 0.23], [0.3, 0.1, 0.01, 0.02, 0.16, 0.41]]


def drawn(layers: list[list[float]] = LAYERS, label: str = "map") -> ElementTree.Element:
    """The map as a tree; it must be well formed."""
    return ElementTree.fromstring(heat_map(NAMES, layers, 0.16, label))


def test_bins_lie_side_by_side_and_the_other_columns_apart():
    placed = {c.name: (c.start, c.start + c.width) for c in columns(NAMES)}
    assert placed["passage 0–50 %"][1] == placed["passage 50–100 %"][0]
    assert all(placed[one][1] < placed[two][0] for one, two in (NAMES[:2], NAMES[1:3], NAMES[3:5], NAMES[4:6]))


def test_the_scale_is_that_of_passage_and_embedding_token_over_all_models():
    other = [[0.9, 0.0, 0.03, 0.03, 0.04, 0.0]]
    models = {"a": {"layers": LAYERS}, "b": {"layers": other}}
    assert scale({"columns": NAMES, "models": models}) == 0.16


def test_cells_carry_their_value_and_its_root_as_strength_that_ends_at_the_scale():
    cells = [rect for rect in drawn().iter("rect") if rect.get("class") is None]
    assert len(cells) == len(NAMES) * len(LAYERS)
    strength = [float(cell.get("fill-opacity")) for cell in cells]
    assert strength[:6] == pytest.approx([1.0, 1.0, 0.5, 0.25, (1 / 8) ** 0.5, 1.0], abs=1e-3)
    assert cells[2].find("title").text == "layer 1, passage 0–50 %: 0.0400"
    assert [cell.get("y") for cell in cells] == ["0"] * 6 + ["1"] * 6


def test_the_most_of_passage_and_embedding_token_is_framed_in_each_layer():
    placed = {c.name: f"{c.start:g}" for c in columns(NAMES)}
    frames = [(rect.get("y"), rect.get("x")) for rect in drawn().iter("rect") if rect.get("class") == "peak"]
    assert frames == [("0", placed["passage 0–50 %"]), ("1", placed["[E]"])]


def test_some_layers_are_numbered_the_first_and_the_last_always():
    (numbers,) = [d for d in drawn([LAYERS[0]] * 28).iter("div") if d.get("class") == "layers"]
    told = [span.text for span in numbers]
    assert (told[0], told[-1]) == ("1", "28")
    assert len(told) <= 7
    (single,) = [d for d in drawn(LAYERS[:1]).iter("div") if d.get("class") == "layers"]
    assert [span.text for span in single] == ["1"]


def test_the_page_decides_on_colours_and_labels_are_escaped():
    text = heat_map(NAMES, LAYERS, 0.0, "<b>")
    assert not re.search(r"fill=|stroke=|#[0-9a-f]{3,6}|<b>", text)
