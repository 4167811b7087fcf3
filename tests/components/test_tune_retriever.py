"""The step `tune_retriever` by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.tune_retriever.__main__ import STEP
from llm_retriever.models.card import RetrieverCard

FLAGS = {
    "--passages-per-query": 3,
    "--query-length": 110,
    "--passage-length": 130,
    "--max-steps": 3,
    "--batch-size": 8,
    "--micro-batch-size": 8,
    "--learning-rate": 1e-3,
    "--processes": 1,
}


@pytest.fixture
def arguments(backbone_directory, collection_directory, training_set_directory, tmp_path) -> dict[str, object]:
    return {
        "--adapted": backbone_directory,
        "--collection": collection_directory,
        "--training-set": training_set_directory,
        "--retriever": tmp_path / "retriever",
        "--curves": tmp_path / "curves.html",
        "--metrics": tmp_path / "metrics.json",
        **FLAGS,
    }


def run(arguments: dict[str, object]) -> int:
    return STEP.execute([str(part) for pair in arguments.items() for part in pair])


@pytest.mark.slow
def test_the_step_writes_a_retriever_its_curves_and_its_metrics(arguments, tmp_path):
    assert run(arguments) == 0
    assert RetrieverCard.load(tmp_path / "retriever").method == "llm-ql"
    assert "<svg" in (tmp_path / "curves.html").read_text()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["updates"] == 3
    assert metrics["pairs"] == 24


@pytest.mark.slow
def test_kubeflow_is_told_the_metrics_as_numbers(arguments, tmp_path):
    names = {"curves": "system.HTML", "retriever": "system.Model"}
    given = {
        name: {"artifacts": [{"name": name, "uri": str(arguments[flag])}]}
        for name, flag in (
            ("adapted", "--adapted"),
            ("collection", "--collection"),
            ("training_set", "--training-set"),
        )
    }
    made = {
        name: {"artifacts": [{"name": name, "uri": str(tmp_path / "out" / name), "type": {"schemaTitle": kind}}]}
        for name, kind in names.items()
    }
    settings = {flag[2:].replace("-", "_"): value for flag, value in FLAGS.items()}
    answer = tmp_path / "executor_output.json"
    message = {
        "inputs": {"parameterValues": settings, "artifacts": given},
        "outputs": {"artifacts": made, "outputFile": str(answer)},
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    told = json.loads(answer.read_text())["artifacts"]
    metadata = told["curves"]["artifacts"][0]["metadata"]
    assert (metadata["updates"], metadata["method"]) == (3, "llm-ql")
    assert metadata["loss_end"] == json.loads((tmp_path / "metrics").read_text())["loss_end"]


def test_bad_input_ends_with_2_one_line_and_no_output(arguments, tmp_path, capsys):
    assert run({**arguments, "--batch-size": "many"}) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('tune_retriever: field "batch_size"')
    (tmp_path / "nothing").mkdir()
    assert run({**arguments, "--training-set": tmp_path / "nothing"}) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not Path(str(arguments["--retriever"])).exists()
    assert not Path(str(arguments["--curves"])).exists()
