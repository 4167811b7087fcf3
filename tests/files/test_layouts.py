"""A run replaces what an earlier run of the same kind wrote, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.convert import convert
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.models.model_files import DESCRIPTION_FILES, WEIGHTS_FILE, WEIGHTS_INDEX
from llm_retriever.settings import CorpusSettings


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture
def made(collection_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(collection_directory, tmp_path / "made"))


def test_an_earlier_collection_is_replaced(made: Path, beir_source: Path) -> None:
    first = Collection.open(made).fingerprint
    with (beir_source / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "new", "text": "One more passage."}) + "\n")
    preparation.prepare(CorpusSettings(uri=str(beir_source)), made)
    assert Collection.open(made).fingerprint != first


@pytest.mark.parametrize(
    "stray", ["thesis.txt", "qrels/notes.txt", "qrels/deep/test.tsv", ".git/HEAD", "collection.json.bak"]
)
def test_a_collection_with_anything_else_in_it_stays_as_it_is(made: Path, beir_source: Path, stray: str) -> None:
    (made / stray).parent.mkdir(parents=True, exist_ok=True)
    (made / stray).write_text("years of work")
    before = contents(made)
    with pytest.raises(InputError, match="would be erased") as refused:
        preparation.prepare(CorpusSettings(uri=str(beir_source)), made)
    assert refused.value.file == made / stray
    assert contents(made) == before
    assert [path.name for path in made.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("mark", [None, "{}", "[1]", "not json", '{"format": 1}'])
def test_files_of_the_right_names_without_the_manifest_are_somebodys(
    beir_source: Path, tmp_path: Path, mark: str | None
) -> None:
    """A BEIR directory has the names of a collection's files."""
    other = Path(shutil.copytree(beir_source, tmp_path / "other"))
    if mark is not None:
        (other / "collection.json").write_text(mark)
    with pytest.raises(InputError, match=r"not known as a collection \(collection.json\)"):
        preparation.prepare(CorpusSettings(uri=str(beir_source)), other)
    assert (other / "corpus.jsonl").exists()


def test_a_link_in_a_collection_is_somebodys(made: Path, beir_source: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (made / "big").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="would be erased"):
        preparation.prepare(CorpusSettings(uri=str(beir_source)), made)


def test_an_empty_directory_is_free_and_a_file_is_not(beir_source: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    preparation.prepare(CorpusSettings(uri=str(beir_source)), tmp_path / "empty")
    assert Collection.open(tmp_path / "empty").passage_count == 60
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="a file is where a directory goes"):
        preparation.prepare(CorpusSettings(uri=str(beir_source)), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "x"


def test_what_killed_writers_left_is_nobodys(made: Path) -> None:
    (made / ".corpus.jsonl.0123456789ab.partial").write_text("half")
    (made / ".0123456789ab.lock").touch()
    layouts.COLLECTION.check(made)
    (made / "corpus.jsonl.0123456789ab.partial").write_text("half")
    with pytest.raises(InputError, match=r"corpus\.jsonl\.0123456789ab\.partial"):
        layouts.COLLECTION.check(made)


@pytest.mark.skipif(os.geteuid() == 0, reason="everything is open to root")
def test_a_directory_that_cannot_be_looked_into_is_refused(made: Path) -> None:
    (made / "qrels").chmod(0)
    try:
        with pytest.raises(InputError, match="cannot be looked into"):
            layouts.COLLECTION.check(made)
    finally:
        (made / "qrels").chmod(0o755)


@pytest.mark.parametrize(
    ("name", "earlier", "foreign"),
    [
        ("report", "\n<!doctype html>\n<html>", "# Thesis"),
        ("metrics", '{"test_ndcg_at_10": 0.5}', '{"name": "package", "version": 1}'),
        ("metrics", '{"updates": 3}', "{}"),
        ("statistics", "# Collection\n\n60 passages", "# Collections of mine\n"),
        ("summary", "# Evaluation\n", "Evaluation"),
        ("decision", "# Kept: 2026-01-01-abc stays in production\n", "# Decision\n"),
    ],
)
def test_a_file_is_replaced_if_it_begins_as_such_a_file_does(
    tmp_path: Path, name: str, earlier: str, foreign: str
) -> None:
    path = tmp_path / "file"
    layouts.OUTPUTS[name].check(path)
    for text in ("", earlier):
        path.write_text(text)
        layouts.OUTPUTS[name].check(path)
    path.write_text(foreign)
    with pytest.raises(InputError, match="would be overwritten"):
        layouts.OUTPUTS[name].check(path)
    with pytest.raises(InputError, match="a directory is where a file goes"):
        layouts.OUTPUTS[name].check(tmp_path)
    with pytest.raises(InputError, match="no regular file"):
        layouts.OUTPUTS[name].check("/dev/null")


def test_all_files_of_a_backbone_are_known() -> None:
    assert {*DESCRIPTION_FILES, WEIGHTS_FILE, WEIGHTS_INDEX} - {"tokenizer.model", "model.safetensors"} <= set(
        layouts.MODEL_FILES
    )
    known = layouts.RETRIEVER.patterns()
    for name in ("model/model-00001-of-00002.safetensors", "model/tokenizer.model", "adapter/adapter_config.json"):
        assert any(pattern.fullmatch(name) for pattern in known)
    assert not any(pattern.fullmatch("model/deep/config.json") for pattern in known)


def test_a_conversion_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not an empty directory"):
        convert(tmp_path / "model", tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_a_directory_of_ones_own_layout_is_checked_when_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "mine").write_text("x")
    with pytest.raises(InputError, match="part of an index"), layouts.INDEX.output(tmp_path / "index"):
        raise AssertionError("no work is done")
