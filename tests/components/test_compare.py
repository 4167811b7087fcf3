"""The step `compare`, by hand and under Kubeflow's message, and what Kubeflow sees of it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from components.compare.__main__ import STEP
from components.compare.component import comparing
from tests.evaluation.test_comparison import evaluation, write

OUTPUTS = ("comparison", "report", "summary", "metrics")


def flags(directory: Path, *named: str) -> list[str]:
    outputs = [part for name in OUTPUTS for part in (f"--{name}", str(directory / name))]
    return ["--evaluations", *named, *outputs]


@pytest.fixture
def evaluations(tmp_path: Path) -> dict[str, Path]:
    return write(tmp_path / "in", ql=evaluation(0.6, 1), plain=evaluation(0.4, 2))


def test_named_directories_are_compared_under_their_names(evaluations: dict[str, Path], tmp_path: Path) -> None:
    named = (f"LLM-QL={evaluations['ql']}", f"no stage one={evaluations['plain']}")
    assert STEP.execute([*flags(tmp_path, *named), "--reference", "no stage one"]) == 0
    content = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert list(content["variants"]) == ["LLM-QL", "no stage one"]
    assert content["reference"] == "no stage one"
    assert (tmp_path / "report").read_text().startswith("<!doctype html>")
    assert "test_ndcg_at_10_no_stage_one" in json.loads((tmp_path / "metrics").read_text())


def test_kubeflow_gives_any_number_of_evaluations_and_the_names_as_a_parameter(
    evaluations: dict[str, Path], tmp_path: Path
) -> None:
    def artifact(name: str, path: Path) -> dict:
        return {"artifacts": [{"name": name, "uri": str(path), "metadata": {}}]}

    given = {"evaluation_no_stage_one": evaluations["plain"], "evaluation_llm_ql": evaluations["ql"]}
    names = json.dumps({"LLM-QL": "with QL", "no stage one": "without"})
    message = {
        "inputs": {
            "parameterValues": {"reference": "", "variants": names},
            "artifacts": {name: artifact(name, path) for name, path in given.items()},
        },
        "outputs": {
            "outputFile": str(tmp_path / "executor_output.json"),
            "artifacts": {name: artifact(name, tmp_path / "out" / name) for name in OUTPUTS},
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    content = json.loads((tmp_path / "out" / "comparison" / "comparison.json").read_text())
    assert list(content["variants"]) == ["LLM-QL", "no stage one"]
    assert content["variants"]["LLM-QL"]["description"] == "with QL"
    answer = json.loads((tmp_path / "executor_output.json").read_text())
    assert answer["artifacts"].keys() == set(OUTPUTS)
    shown = answer["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert shown == json.loads((tmp_path / "out" / "metrics").read_text())
    assert shown["test_ndcg_at_10_llm_ql"] > shown["test_ndcg_at_10_no_stage_one"]


@pytest.mark.parametrize(
    ("named", "line"),
    [
        (["a"], "'a' is not of the form NAME=PATH"),
        (["a=/nowhere"], '/nowhere: field "--evaluations": no such file or directory'),
        (["a=.", "A=."], "'A' is given twice"),
        (["a=."], "there are fewer than two evaluations"),
        (["a=.", "b=."], "evaluation.json: no such file; give the output of evaluate"),
    ],
)
def test_bad_input_ends_with_code_2_one_line_and_no_output(
    named: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert STEP.execute(flags(tmp_path, *named)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("compare: ")
    assert line in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_evaluations_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STEP.execute(flags(tmp_path)[1:]) == 2
    assert 'field "--evaluations": is missing' in capsys.readouterr().err


def test_the_component_has_one_required_input_for_every_variant() -> None:
    component = comparing(["LLM-QL", "0.6", "no stage one"])
    spec = component.component_spec
    assert list(spec.inputs) == [
        "evaluation_llm_ql",
        "evaluation_0_6",
        "evaluation_no_stage_one",
        "reference",
        "variants",
    ]
    assert set(spec.outputs) == set(OUTPUTS)
    assert not any(given.optional for given in spec.inputs.values())
    assert next(iter(inspect.signature(component.pipeline_func).parameters)) == "evaluation_llm_ql"
