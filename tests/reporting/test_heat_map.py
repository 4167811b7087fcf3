from __future__ import annotations

import re

import pytest

from llm_retriever.reporting.heat_map import heat_map, largest_attention
from tests.reporting.test_charts import uses, words

NAMES = ["beginning of sequence", "prompt", "passage 0–50 %", "passage 50–100 %", "[E]", "query"]
LAYERS = [[0.5, 0.2, 0.04, 0.01, 0.02, 0.23], [0.3, 0.1, 0.01, 0.02, 0.16, 0.41]]


def test_the_scale_is_that_of_passage_and_embedding_token_over_all_models():
    other = [[0.9, 0.0, 0.03, 0.03, 0.04, 0.0]]
    models = {"a": {"layers": LAYERS}, "b": {"layers": other}}
    assert largest_attention({"columns": NAMES, "models": models}) == 0.16


def test_cells_are_as_strong_as_the_root_of_their_value_up_to_the_scale():
    strength = [float(value) for value in re.findall(r"opacity: ([\d.]+)", heat_map(NAMES, LAYERS, 0.16, "map"))]
    faint = [value for value in strength if value < 1]
    assert faint == pytest.approx([0.5, 0.25, (1 / 8) ** 0.5, 0.79, 0.25, (1 / 8) ** 0.5], abs=1e-2)


def test_one_cell_of_passage_and_embedding_token_is_framed_in_each_layer():
    framed = heat_map(NAMES, LAYERS, 0.16, "map")
    nothing = heat_map(NAMES, [[0.5, 0.5, 0.0, 0.0, 0.0, 0.0]] * 2, 0.16, "map")
    assert uses(framed, "text") - uses(nothing, "text") == 2


def test_some_layers_are_numbered_the_first_and_the_last_always():
    told = [int(word) for word in words(heat_map(NAMES, [LAYERS[0]] * 28, 0.16, "map")) if word.isdecimal()]
    assert {1, 28} <= set(told)
    assert len(told) <= 8
    assert [word for word in words(heat_map(NAMES, LAYERS[:1], 0.16, "map")) if word.isdecimal()] == ["1"]


def test_columns_are_named_the_passage_once():
    assert words(heat_map(NAMES, LAYERS, 0.0, "<b>"))[:5] == ["BOS", "prompt", "[E]", "query", "passage"]
    assert "<b>" not in heat_map(NAMES, LAYERS, 0.0, "<b>")
