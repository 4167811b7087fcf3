from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.mine_negatives.__main__ import STEP
from llm_retriever.data.training_set import TrainingSet
from llm_retriever.metrics.runs import read_run

COMMAND = [sys.executable, "-m", "components.mine_negatives"]


def step(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False)


def outputs(directory: Path) -> list[str]:
    return [
        f"--training-set={directory / 'training_set'}",
        f"--bm25-runs={directory / 'runs'}",
        f"--statistics={directory / 'statistics.md'}",
        f"--picture={directory / 'picture.html'}",
    ]


@pytest.mark.slow
def test_kubeflow_gets_outputs_and_their_numbers(collection_directory: Path, tmp_path: Path) -> None:
    names = ("training_set", "bm25_runs", "statistics", "picture")
    message = {
        "inputs": {
            "parameterValues": {"depth": 20, "negatives": 5, "evaluation_depth": 10, "threads": 1},
            "artifacts": {"collection": {"artifacts": [{"name": "c", "uri": str(collection_directory)}]}},
        },
        "outputs": {
            "artifacts": {n: {"artifacts": [{"name": n, "uri": str(tmp_path / n)}]} for n in names},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    done = step("--executor-input", json.dumps(message))
    assert done.returncode == 0, done.stderr
    answer = json.loads((tmp_path / "executor_output.json").read_text())["artifacts"]
    examples = list(TrainingSet.open(tmp_path / "training_set").examples())
    metadata = answer["picture"]["artifacts"][0]["metadata"]
    assert metadata["examples"] == len(examples) == 42
    assert metadata["negatives"] == sum(len(example.negatives) for example in examples)
    assert len(read_run(tmp_path / "bm25_runs" / "test.trec")) == 18
    assert (tmp_path / "statistics").read_text().startswith("# Hard negatives")
    assert (tmp_path / "picture").read_text().startswith("<!doctype html>")
    assert "index passages for Lucene" in done.stderr
    assert set(answer) == set(names)


def test_an_encoder_that_is_none_ends_with_code_2_and_one_line(collection_directory: Path, tmp_path: Path) -> None:
    flags = [f"--collection={collection_directory}", *outputs(tmp_path / "out"), f"--encoder={tmp_path / 'nowhere'}"]
    done = step(*flags)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("mine_negatives: ")] == [
        done.stderr.splitlines()[-1]
    ]
    assert "nowhere" in done.stderr
    assert not list((tmp_path / "out").rglob("*"))


def test_no_collection_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = step(f"--collection={tmp_path / 'empty'}", *outputs(tmp_path / "out"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "collection.json" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_setting_out_of_its_limits_is_refused(collection_directory: Path, tmp_path: Path) -> None:
    flags = [f"--collection={collection_directory}", *outputs(tmp_path / "out"), "--depth=0"]
    assert STEP.execute(flags) == 2
    assert not (tmp_path / "out").exists()


def test_help_names_every_setting() -> None:
    done = step("--help")
    for flag in (
        "--collection",
        "--training-set",
        "--rank-floor",
        "--score-ceiling",
        "--bm25-k1",
        "--seed",
        "--encoder",
    ):
        assert flag in done.stdout
    assert "second round" in done.stdout


def test_start_up_leaves_heavy_packages_alone() -> None:
    """Neither the step nor the mining library imports pyserini here: Lucene has a process of its own."""
    code = (
        "import sys, components.mine_negatives.__main__, llm_retriever.mining.negatives;"
        "print([n for n in ('torch', 'pyserini', 'jnius', 'kfp', 'transformers', 'faiss', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
