"""The step mine_for_variants: all that variants read, in one artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import TrainingSet
from llm_retriever.files.seal import SEAL
from llm_retriever.metrics.runs import read_run


@pytest.mark.slow
def test_the_collection_lies_beside_what_was_mined_from_it(collection_directory: Path, tmp_path: Path) -> None:
    message = {
        "inputs": {
            "parameterValues": {"depth": 20, "negatives": 5, "threads": 1},
            "artifacts": {"collection": {"artifacts": [{"name": "c", "uri": str(collection_directory)}]}},
        },
        "outputs": {
            "artifacts": {n: {"artifacts": [{"name": n, "uri": str(tmp_path / n)}]} for n in ("data", "picture")},
            "outputFile": str(tmp_path / "answer" / "executor_output.json"),
        },
    }
    command = [sys.executable, "-m", "components.mine_for_variants", "--executor-input", json.dumps(message)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    data = tmp_path / "data"
    assert sorted(path.name for path in data.iterdir()) == [SEAL, "bm25_runs", "collection", "training_set"]
    source = Collection.open(data / "collection")
    assert source.fingerprint == Collection.open(collection_directory).fingerprint
    assert len(TrainingSet.open(data / "training_set", source)) == 42
    assert len(read_run(data / "bm25_runs" / "test.trec")) == 18
    assert (tmp_path / "picture").read_text().startswith("<!doctype html>")
    assert json.loads((tmp_path / "answer" / "executor_output.json").read_text())["artifacts"].keys() == {
        "data",
        "picture",
    }
