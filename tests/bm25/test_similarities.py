from __future__ import annotations

import pytest

from llm_retriever.bm25.similarities import bm25, chosen_bm25, parse_baselines
from llm_retriever.errors import InputError
from llm_retriever.settings import MiningSettings, build


def test_the_two_settings_of_the_field_are_presets() -> None:
    assert chosen_bm25(MiningSettings()) == bm25(0.9, 0.4)
    assert chosen_bm25(MiningSettings(bm25="msmarco-tuned")) == bm25(0.82, 0.68)


def test_either_parameter_may_be_given_another_value() -> None:
    assert chosen_bm25(MiningSettings(bm25="msmarco-tuned", bm25_k1=1.2)) == bm25(1.2, 0.68)
    assert chosen_bm25(MiningSettings(bm25_b=0.0)) == bm25(0.9, 0.0)


@pytest.mark.parametrize(("field", "value"), [("bm25_k1", -0.5), ("bm25_b", -0.3), ("bm25_b", 1.1)])
def test_a_parameter_outside_its_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(InputError) as caught:
        build(MiningSettings, {field: value})
    assert caught.value.field == field
    assert getattr(build(MiningSettings, {field: 0}), field) == 0


def test_baselines_have_the_values_of_the_literature() -> None:
    dirichlet, jelinek_mercer = parse_baselines(" qld, qljm ")
    assert (dirichlet.label, dirichlet.parameters) == ("QLM-D", {"mu": 1000.0})
    assert (jelinek_mercer.label, jelinek_mercer.parameters) == ("QLM-JM", {"lambda": 0.1})
    assert parse_baselines("qld:2500")[0].parameters == {"mu": 2500.0}
    assert parse_baselines("") == []


@pytest.mark.parametrize("text", ["bm25", "qld:0", "qld:x", "qld:", "qld:inf", "qld:nan", "qljm:1.5", "qld,qld:5"])
def test_other_baselines_are_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_baselines(text)
    assert caught.value.field == "baselines"
    assert caught.value.hint
