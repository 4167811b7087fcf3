"""The step `build_index`, by hand and under Kubeflow's message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.build_index.__main__ import STEP
from llm_retriever.data.collection import Collection
from llm_retriever.models.card import CARD_FILE


def flags(retriever: Path, collection: Path, index: Path, *others: str) -> list[str]:
    return ["--retriever", str(retriever), "--collection", str(collection), "--index", str(index), *others]


def test_plain_flags_build_an_index(retriever_directory, collection_directory, tmp_path):
    arguments = flags(retriever_directory, collection_directory, tmp_path / "index", "--shard-passages", "25")
    assert STEP.execute(arguments) == 0
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert [shard["count"] for shard in manifest["shards"]] == [25, 25, 10]


def test_kubeflow_gets_the_index_and_its_manifest_says_how_fast_it_was_made(
    retriever_directory, collection_directory, tmp_path
):
    def artifact(name: str, path: Path) -> dict:
        return {"artifacts": [{"name": name, "uri": str(path), "metadata": {}}]}

    message = {
        "inputs": {
            "parameterValues": {"dtype": "fp16", "precision": "fp32"},
            "artifacts": {
                "retriever": artifact("retriever", retriever_directory),
                "collection": artifact("collection", collection_directory),
            },
        },
        "outputs": {
            "outputFile": str(tmp_path / "executor_output.json"),
            "artifacts": {"index": artifact("index", tmp_path / "index")},
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())
    assert answer["artifacts"]["index"]["artifacts"][0]["uri"] == str(tmp_path / "index")
    made = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert (made["count"], made["dimension"], made["dtype"], len(made["shards"])) == (60, 64, "fp16", 1)
    assert made["collection"] == Collection.open(collection_directory).fingerprint
    assert made["timings"]["passages_per_second"] > 0


@pytest.mark.parametrize("wrong", ["retriever", "collection", "card", "setting"])
def test_bad_input_ends_with_one_line_and_no_index(wrong, retriever_directory, collection_directory, tmp_path, capsys):
    retriever = Path(shutil.copytree(retriever_directory, tmp_path / "retriever"))
    if wrong == "card":
        (retriever / CARD_FILE).unlink()
    arguments = flags(
        tmp_path / "nowhere" if wrong == "retriever" else retriever,
        tmp_path if wrong == "collection" else collection_directory,
        tmp_path / "out" / "index",
        *(("--passage-length", "9999") if wrong == "setting" else ()),
    )
    assert STEP.execute(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("build_index: ")
    assert "Traceback" not in last
    assert not (tmp_path / "out" / "index").exists()
