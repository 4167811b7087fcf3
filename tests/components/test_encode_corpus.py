"""The step `encode_corpus`, by hand and under Kubeflow's message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.build_index.__main__ import STEP as BUILD
from components.encode_corpus.__main__ import STEP
from tests.components.test_build_index import flags


def inputs(retriever: Path, collection: Path, encoded: Path, *others: str) -> list[str]:
    return ["--retriever", str(retriever), "--collection", str(collection), "--encoded", str(encoded), *others]


@pytest.mark.slow
def test_parts_by_hand_and_the_index_of_them(retriever_directory, collection_directory, tmp_path):
    same = ("--shard-passages", "25", "--shards-uri", str(tmp_path / "shards"))
    for part in ("0", "1"):
        own = ("--part", part, "--parts", "2")
        arguments = inputs(retriever_directory, collection_directory, tmp_path / f"part-{part}", *same, *own)
        assert STEP.execute(arguments) == 0
    (shards,) = (tmp_path / "shards").iterdir()
    written = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    assert len(written) == 3 * 3
    assert BUILD.execute(flags(retriever_directory, collection_directory, tmp_path / "index", *same)) == 0
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert ([shard["count"] for shard in manifest["shards"]], manifest["shards_uri"]) == ([25, 25, 10], str(shards))
    assert written == {path: path.stat().st_mtime_ns for path in shards.iterdir()}


def test_kubeflow_is_shown_which_part_was_encoded(retriever_directory, collection_directory, tmp_path):
    def artifact(name: str, path: Path) -> dict:
        return {"artifacts": [{"name": name, "uri": str(path), "metadata": {}}]}

    message = {
        "inputs": {
            # Loop items arrive as floats.
            "parameterValues": {
                "part": 1.0,
                "parts": 2.0,
                "shard_passages": 25.0,
                "shards_uri": str(tmp_path / "shards"),
            },
            "artifacts": {
                "retriever": artifact("retriever", retriever_directory),
                "collection": artifact("collection", collection_directory),
            },
        },
        "outputs": {
            "outputFile": str(tmp_path / "executor_output.json"),
            "artifacts": {"encoded": artifact("encoded", tmp_path / "encoded")},
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())
    shown = answer["artifacts"]["encoded"]["artifacts"][0]["metadata"]
    assert (shown["part"], shown["parts"], shown["shards"]) == (1, 2, 1)
    assert shown["passages_per_second"] > 0


@pytest.mark.parametrize(
    ("others", "field"),
    [((), "shards_uri"), (("--shards-uri", "out", "--part", "2", "--parts", "2"), "part"), (("--parts", "0"), "parts")],
)
def test_parts_that_cannot_be_end_with_one_line(
    others, field, retriever_directory, collection_directory, tmp_path, capsys
):
    assert STEP.execute(inputs(retriever_directory, collection_directory, tmp_path / "part", *others)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f'encode_corpus: field "{field}"')
    assert not (tmp_path / "part").exists()
