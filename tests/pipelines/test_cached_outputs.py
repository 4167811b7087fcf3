"""The local cache takes a step's outputs only if they are still what the step left."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kfp import compiler, dsl

from components.fetch_backbone.component import fetch_backbone
from components.prepare_corpus.component import prepare_corpus
from llm_retriever import files
from pipelines.cached_outputs import CheckedCache
from pipelines.local import run_compiled
from tests.conftest import write_backbone, write_beir


@dsl.pipeline(name="two-steps")
def two_steps(uri: str, source: str) -> None:
    """A collection, and what is made after it."""
    prepared = prepare_corpus(uri=uri, source_fingerprint="", options={})
    fetch_backbone(
        collection=prepared.outputs["collection"], source=source, revision="", source_fingerprint="", options={}
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """The compiled pipeline, the root of a run that was done, and its arguments."""
    base = tmp_path_factory.mktemp("cached")
    package = base / "two_steps.yaml"
    compiler.Compiler().compile(two_steps, str(package))
    given = {"uri": str(write_beir(base / "corpus")), "source": str(write_backbone(base / "backbone"))}
    assert run_compiled(package, given, base / "root").exit_code == 0
    return package, base / "root", given


def again(done: tuple[Path, Path, dict[str, str]]) -> list[str]:
    """What becomes of the two steps when the pipeline is run again."""
    package, root, given = done
    run = run_compiled(package, given, root)
    assert run.exit_code == 0
    return [record.outcome for record in run.records]


def newest(root: Path, output: str) -> Path:
    return max(root.glob(f"runs/*/*/{output}"), key=lambda path: path.stat().st_mtime)


def test_outputs_that_are_as_they_were_are_taken(done: tuple[Path, Path, dict[str, str]]) -> None:
    assert again(done) == ["cached", "cached"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def edit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-10] + bytes(10))


def add(path: Path) -> None:
    (path.parent / "added.txt").write_text("x")


def remove_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("damage", [Path.unlink, cut, edit, add, remove_folder])
@pytest.mark.parametrize(
    ("file", "outcomes"),
    [("collection/corpus.jsonl", ["done", "done"]), ("backbone/model.safetensors", ["cached", "done"])],
)
def test_what_is_gone_or_was_changed_is_made_anew(
    done: tuple[Path, Path, dict[str, str]],
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    file: str,
    outcomes: list[str],
) -> None:
    again(done)
    output, _, name = file.partition("/")
    damage(newest(done[1], output) / name)
    assert again(done) == outcomes
    if damage is not remove_folder:
        assert "since it was cached: it is made anew" in capfd.readouterr().err
    assert again(done) == ["cached", "cached"]


def test_an_entry_without_its_record_is_none(done: tuple[Path, Path, dict[str, str]]) -> None:
    again(done)
    for record in done[1].glob("cache/*/*.files.json"):
        record.unlink()
    assert again(done) == ["done", "done"]


def test_shards_elsewhere_belong_to_the_index_that_names_them(tmp_path: Path) -> None:
    index, shards = tmp_path / "index", tmp_path / "shards"
    named = {"file": "vectors-00000.npy", "ids": "ids-00000.txt"}
    files.write_json(index / "manifest.json", {"shards_uri": str(shards), "shards": [named]})
    files.write_json(tmp_path / "part" / "part.json", {"shards_uri": str(shards), "shards": {"0": named}})
    for name in (*named.values(), "vectors-00001.npy"):
        files.write_text(shards / name, name)
    cache = CheckedCache(str(tmp_path / "cache"))
    outputs = {"index": dsl.Dataset(name="index", uri=str(index)), "count": 3}
    cache.put("index", outputs)
    cache.put("parts", {"encoded": [dsl.Dataset(name="encoded", uri=str(tmp_path / "part"))]})
    os.utime(shards / "vectors-00001.npy", (1, 1))
    assert {cache.get(key) is None for key in ("index", "parts")} == {False}
    os.utime(shards / "vectors-00000.npy", (1, 1))
    assert {cache.get(key) is None for key in ("index", "parts")} == {True}


def test_shards_in_a_bucket_are_left_to_the_steps(tmp_path: Path) -> None:
    files.write_json(
        tmp_path / "index" / "manifest.json", {"shards_uri": "s3://b/x", "shards": [{"file": "v", "ids": "i"}]}
    )
    cache = CheckedCache(str(tmp_path / "cache"))
    cache.put("index", {"index": dsl.Dataset(name="index", uri=str(tmp_path / "index"))})
    assert cache.get("index") is not None
    [record] = (tmp_path / "cache").glob("*.files.json")
    assert [Path(name).name for name in json.loads(record.read_text())] == ["manifest.json"]
