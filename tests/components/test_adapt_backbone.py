"""The step adapt_backbone as people and Kubeflow start it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.adapt_backbone.__main__ import STEP
from llm_retriever.models.card import load_lineage

TINY = ["--passage-length=120", "--query-length=30", "--batch-size=4", "--micro-batch-size=4", "--max-steps=2"]


@pytest.fixture
def flags(
    backbone_directory: Path, collection_directory: Path, training_set_directory: Path, tmp_path: Path
) -> list[str]:
    inputs = {
        "backbone": backbone_directory,
        "collection": collection_directory,
        "training-set": training_set_directory,
        "adapted": tmp_path / "adapted",
        "curves": tmp_path / "curves.html",
        "metrics": tmp_path / "metrics.json",
    }
    return [f"--{name}={path}" for name, path in inputs.items()]


@pytest.mark.slow
def test_by_hand_it_writes_model_curves_and_metrics(flags: list[str], tmp_path: Path):
    assert STEP.execute([*flags, *TINY, "--processes=1"]) == 0
    assert [stage.stage for stage in load_lineage(tmp_path / "adapted").stages] == ["ql"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["updates"] == 2
    assert metrics["pairs"] == 8
    assert metrics["loss_end"] > 0
    assert "<svg" in (tmp_path / "curves.html").read_text()


def test_method_none_still_gives_every_output(flags: list[str], tmp_path: Path):
    assert STEP.execute([*flags, "--method=none"]) == 0
    assert load_lineage(tmp_path / "adapted").stages == ()
    assert json.loads((tmp_path / "metrics.json").read_text())["updates"] == 0
    assert (tmp_path / "curves.html").read_text().startswith("<!")


@pytest.mark.slow
def test_by_executor_input_it_answers_with_metrics_and_lineage(
    backbone_directory: Path, collection_directory: Path, training_set_directory: Path, tmp_path: Path
):
    given = {
        "backbone": backbone_directory,
        "collection": collection_directory,
        "training_set": training_set_directory,
    }
    message = {
        "inputs": {
            "parameterValues": {"passage_length": 120, "query_length": 30, "batch_size": 4, "max_steps": 2},
            "artifacts": {name: {"artifacts": [{"uri": str(path)}]} for name, path in given.items()},
        },
        "outputs": {
            "outputFile": str(tmp_path / "executor_output.json"),
            "artifacts": {
                name: {"artifacts": [{"name": name, "uri": str(tmp_path / name)}]} for name in ("adapted", "curves")
            },
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())["artifacts"]
    metadata = answer["curves"]["artifacts"][0]["metadata"]
    assert (metadata["updates"], metadata["stages"]) == (2, "ql")
    # What Kubeflow does not ask for lies beside the answer.
    assert json.loads((tmp_path / "metrics").read_text())["updates"] == 2


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--method=dpr", 'field "method"'),
        ("--corruption-ratio=1.5", 'field "corruption_ratio"'),
        ("--passage-length=20", 'field "passage_length"'),
        ("--recipe=better", 'field "recipe"'),
    ],
)
def test_bad_settings_end_with_code_2_and_one_line(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, told: str
):
    assert STEP.execute([*flags, "--processes=1", flag]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("adapt_backbone: ")
    assert told in lines[0]
    assert not (tmp_path / "adapted").exists()


def test_a_model_that_is_not_a_backbone_ends_with_code_2(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "model").mkdir()
    assert STEP.execute([*flags, f"--backbone={tmp_path / 'model'}"]) == 2
    assert "backbone.json: no such file; give the output of fetch_backbone" in capsys.readouterr().err
