"""Settings refuse what would train nonsense, and say what would do."""

from __future__ import annotations

import pytest

from llm_retriever.errors import InputError
from llm_retriever.settings import AdaptationSettings, TuningSettings, build


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0),
        ("temperature", -0.5),
        ("passages_per_query", 0),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("max_steps", 0),
        ("epochs", 0),
        ("learning_rate", 0),
        ("lora_rank", 0),
        ("lora_dropout", -0.5),
        ("query_length", 0),
        ("gradient_cache", -2),
        ("matryoshka_dimensions", "64,0"),
        ("matryoshka_dimensions", "64;128"),
    ],
)
def test_a_value_that_cannot_be_trained_with_is_refused(field: str, value: float | str) -> None:
    with pytest.raises(InputError) as refused:
        build(TuningSettings, {field: value})
    assert refused.value.field == field
    assert refused.value.hint
    assert "error" not in refused.value.hint


@pytest.mark.parametrize("field", ["corruption_ratio", "ar_weight", "bag_weight", "lora_dropout"])
def test_what_may_be_nothing_may_be_nothing(field: str) -> None:
    assert getattr(build(AdaptationSettings, {field: 0}), field) == 0
    assert getattr(build(AdaptationSettings, {field: -1}), field) == -1
