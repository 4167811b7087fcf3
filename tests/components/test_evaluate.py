"""The step `evaluate`, by hand and under Kubeflow's message."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from components.evaluate.__main__ import STEP
from llm_retriever.models.card import RetrieverCard
from llm_retriever.stores.registry import Registry, model_digest
from tests.conftest import write_beir
from tests.evaluation.conftest import write_inputs

FLAGS = ["--depth", "20", "--measures", "ndcg@10", "--precision", "fp32"]
OUTPUTS = ("evaluation", "report", "summary", "metrics")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("evaluate"))


def flags(inputs: dict[str, Path], directory: Path) -> list[str]:
    paths = inputs | {name: directory / name for name in OUTPUTS}
    return [part for name, path in paths.items() for part in ("--" + name.replace("_", "-"), str(path))]


ENDS = ("", "_hybrid", "_bm25", "_backbone")


@pytest.mark.slow
def test_plain_flags_evaluate(inputs, tmp_path):
    assert STEP.execute(flags(inputs, tmp_path) + FLAGS) == 0
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics.keys() == {f"{s}_ndcg_at_10{b}" for s in ("test", "graded") for b in ENDS}
    assert (tmp_path / "evaluation" / "runs" / "test" / "BM25.trec").exists()
    assert (tmp_path / "report").read_text().startswith("<!doctype html>")


def test_kubeflow_gets_every_output_and_the_metrics_as_numbers(inputs, tmp_path):
    def artifact(name: str, path: Path) -> dict:
        return {"artifacts": [{"name": name, "uri": str(path), "metadata": {}}]}

    message = {
        "inputs": {
            "parameterValues": {"depth": 20, "measures": "ndcg@10", "untuned_passages": 0, "precision": "fp32"},
            "artifacts": {name: artifact(name, path) for name, path in inputs.items()},
        },
        "outputs": {
            "outputFile": str(tmp_path / "executor_output.json"),
            "artifacts": {name: artifact(name, tmp_path / name) for name in OUTPUTS},
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())
    assert answer["artifacts"].keys() == set(OUTPUTS)
    refreshed = json.loads((tmp_path / "evaluation" / "refreshed" / "refreshed.json").read_text())
    assert (refreshed["version"], refreshed["encoded"], refreshed["index"]) == ("", 0, False)
    shown = answer["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert shown == json.loads((tmp_path / "metrics").read_text())
    assert shown.keys() == {f"{split}_ndcg_at_10{end}" for split in ("test", "graded") for end in ENDS[:3]}


@pytest.mark.slow
def test_flags_add_collections_encoders_and_runs(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    letters = write_beir(tmp_path / "letters", 20)
    given = {
        "--zero-shot": str(letters),
        "--encoders": f"again={inputs['retriever']}",
        "--runs": f"lexical={inputs['bm25_runs']}/{{split}}.trec",
        "--untuned-passages": "0",
    }
    more = [part for pair in given.items() for part in pair]
    assert STEP.execute(flags(inputs, tmp_path) + FLAGS + more) == 0
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics["test_ndcg_at_10"] == metrics["test_ndcg_at_10_again"]
    assert metrics["test_ndcg_at_10_bm25"] == metrics["test_ndcg_at_10_lexical"]
    assert metrics["letters_test_ndcg_at_10"] == metrics["zero_shot_ndcg_at_10"]


@pytest.mark.slow
def test_a_version_in_production_is_one_more_system(inputs, tmp_path):
    card = RetrieverCard.load(inputs["retriever"]).digest()
    folders = {name: inputs[name] for name in ("retriever", "index")}
    registry = Registry(str(tmp_path / "published"))
    version = registry.publish(folders, model_digest(**folders), card)
    more = ["--production-uri", registry.uri_of(version), "--untuned-passages", "0"]
    assert STEP.execute(flags(inputs, tmp_path) + FLAGS + more) == 0
    metrics = json.loads((tmp_path / "metrics").read_text())
    assert metrics["test_ndcg_at_10"] == metrics["test_ndcg_at_10_production"]
    assert json.loads((tmp_path / "evaluation" / "refreshed" / "refreshed.json").read_text()) == {
        "production_uri": registry.uri_of(version),
        "version": version.name,
        "encoded": 0,
        "reused": 40,
        "index": False,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--production-uri", "/nowhere"], "not a published version"),
        (["--splits", "dev"], "the collection has no split 'dev'"),
        (["--measures", "f1"], "'f1' is no metric"),
        (["--depth", "5"], "ndcg@10 needs more than 5 passages per query"),
    ],
)
def test_bad_input_ends_with_code_two_one_line_and_no_output(change, message, inputs, tmp_path, capsys):
    assert STEP.execute(flags(inputs, tmp_path) + FLAGS + change) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("evaluate: ")
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []
