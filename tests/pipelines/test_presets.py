"""Presets and parameters are checked before anything starts."""

from __future__ import annotations

import re

import pytest

from llm_retriever.errors import InputError
from pipelines import presets
from pipelines.__main__ import main
from pipelines.train_retriever import train_retriever


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_fits_the_pipeline_and_says_what_it_is_for(name: str) -> None:
    given = {**presets.defaults(train_retriever), **presets.load(name)}
    presets.check(given)
    assert set(given) == set(presets.defaults(train_retriever))
    types = {key: type(value) for key, value in presets.defaults(train_retriever).items()}
    assert {key: type(value) for key, value in given.items()} == types
    assert len(presets.description(name)) > 30


def test_values_are_typed_as_the_pipeline_declares_them() -> None:
    texts = ["mine_depth=50", "tune_epochs=2", "corpus_deduplicate=False", "adapt_cpus=4", "corpus_uri=a=b"]
    values = presets.parsed(train_retriever, [*texts, "tune_learning_rate=1e-4"])
    assert isinstance(values["tune_epochs"], float)
    assert values == {
        "mine_depth": 50,
        "tune_epochs": 2.0,
        "corpus_deduplicate": False,
        "adapt_cpus": "4",
        "corpus_uri": "a=b",
        "tune_learning_rate": 1e-4,
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("adapt_methd=none", 'field "adapt_methd": is no parameter of this pipeline; did you mean adapt_method?'),
        ("mine_depth=1.5", "field \"mine_depth\": '1.5' is not of type int; give for instance 200"),
        ("corpus_deduplicate=perhaps", "is not of type bool"),
        ("none", "'none' is not of the form key=value; write for instance adapt_method=none"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(text: str, error: str) -> None:
    with pytest.raises(InputError, match=re.escape(error)):
        presets.parsed(train_retriever, [text])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["run-local", "--preset", "demo"], "'demo' is no preset; use one of demo-cpu"),
        (
            ["run-local", "adapt_method=magic"],
            "field \"adapt_method\": 'magic' is refused; input should be 'none' or 'ql'",
        ),
        (["run-local", "tune_weights=some"], "field \"tune_weights\": 'some' is refused"),
        (["compile", "mine_depth=0"], 'field "mine_depth": 0 is refused; input should be greater than or equal to 1'),
    ],
)
def test_commands_end_with_code_2_before_anything_starts(
    arguments: list[str],
    error: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: object,
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("pipelines: ")
    assert error in printed
    assert printed.count("\n") == 1


def test_presets_can_be_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    assert "demo-cpu: " in capsys.readouterr().out
    assert main(["presets", "demo-cpu"]) == 0
    assert "corpus_uri=demo:python-docs\n" in capsys.readouterr().out
