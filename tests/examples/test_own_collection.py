"""The example with a collection of one's own: its files are a collection, and its README's commands do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.data.preparation import prepare
from llm_retriever.settings import CorpusSettings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_collection"


def commands() -> list[str]:
    """The README's commands; `make run` as the line of the Makefile that it stands for, without its installation."""
    makes = re.search(r"^run:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert makes
    for_make = makes[1].replace("$(BIN)", ".venv/bin")
    lines = re.findall(r"^(?:make|\.venv).*$", (EXAMPLE / "README.md").read_text(), re.M)
    return [re.sub(r'^make run ARGS="(.*)"$', lambda m: for_make.replace("$(ARGS)", m[1]), line) for line in lines]


def test_the_folder_is_a_collection_whose_every_passage_is_asked_for(tmp_path: Path) -> None:
    manifest = prepare(CorpusSettings(uri=str(EXAMPLE / "garden")), tmp_path / "collection")
    collection = Collection.open(tmp_path / "collection")
    assert collection.splits == ["train", "test"]
    assert "left_out" not in manifest
    passages = {passage.id for passage in collection.passages()}
    for split, questions in {"train": 80, "test": 40}.items():
        judged = collection.qrels(split)
        assert len(judged) == questions
        assert {passage for grades in judged.values() for passage in grades} == passages


@pytest.mark.slow
def test_the_commands_train_publish_and_search(tmp_path: Path) -> None:
    for name, place in {"examples": ROOT / "examples", ".venv": Path(sys.prefix)}.items():
        (tmp_path / name).symlink_to(place)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
    ended = [
        subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        for command in commands()
    ]
    assert [run.returncode for run in ended] == [0, 0, 0], [run.stderr[-2000:] for run in ended]
    training, hybrid, dense = ended
    assert "# Promoted: " in training.stdout
    assert (tmp_path / "build" / "published" / "production.json").is_file()
    assert (tmp_path / "build" / "report.html").is_file()
    # By BM25's share, as hoses are named there alone.
    assert re.match(r" {2}1 +[\d.]+ +tank +The water tanks", hybrid.stdout)
    assert len(re.findall(r"^ +\d+ +-?[\d.]+ +[a-z-]+  [A-Z]", dense.stdout, re.M)) == 10
