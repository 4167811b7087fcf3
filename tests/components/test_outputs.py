"""A step by hand refuses, before any work, outputs that would erase something."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

import pytest

from components.build_index.__main__ import STEP as BUILD_INDEX
from components.outputs import check_outputs
from components.prepare_corpus.__main__ import STEP as PREPARE
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from pipelines.local import ROOT
from tests.files.test_layouts import contents

STEPS = sorted(path.parent.name for path in ROOT.glob("components/*/__main__.py"))


def prepare(source: Path | str, collection: Path | str, statistics: Path | str) -> int:
    return PREPARE.execute(["--uri", str(source), "--collection", str(collection), "--statistics", str(statistics)])


@pytest.mark.parametrize("name", STEPS)
def test_every_output_of_every_step_is_known(name: str) -> None:
    step = importlib.import_module(f"components.{name}.__main__").STEP
    assert set(step.outputs) <= {*layouts.OUTPUTS, *step.layouts}


def test_a_directory_of_somebodys_own_is_not_erased(
    beir_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    assert prepare(beir_source, mine, tmp_path / "statistics.md") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f'prepare_corpus: {mine / "thesis.txt"}: field "--collection": it would be erased')
    assert contents(mine) == {"thesis.txt": b"years of work"}
    assert not (tmp_path / "statistics.md").exists()


def test_the_step_replaces_its_own_outputs(beir_source: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert prepare(beir_source, tmp_path / "collection", tmp_path / "statistics.md") == 0


@pytest.mark.parametrize("how", ["same", "link", "dots", "within", "around", "relative"])
def test_the_source_is_never_an_output(
    beir_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = contents(beir_source)
    (tmp_path / "link").symlink_to(beir_source)
    output = {
        "same": beir_source,
        "link": tmp_path / "link",
        "dots": f"{beir_source}/../{beir_source.name}/.",
        "within": beir_source / "qrels" / "out",
        "around": tmp_path,
        "relative": beir_source.name,
    }[how]
    if how == "relative":
        monkeypatch.chdir(beir_source.parent)
    assert prepare(beir_source, output, tmp_path.parent / "statistics.md") == 2
    assert 'field "--collection"' in capsys.readouterr().err
    assert contents(beir_source) == before


def test_a_link_to_an_input_is_that_input(
    retriever_directory: Path, collection_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = Path(shutil.copytree(collection_directory, tmp_path / "collection"))
    (tmp_path / "index").symlink_to(collection)
    flags = ["--retriever", retriever_directory, "--collection", tmp_path / "index", "--index", collection]
    assert BUILD_INDEX.execute([str(flag) for flag in flags]) == 2
    assert (collection / "corpus.jsonl").exists()
    flags = ["--retriever", retriever_directory, "--collection", collection, "--index", collection / "index"]
    assert BUILD_INDEX.execute([str(flag) for flag in flags]) == 2
    assert "lies within" in capsys.readouterr().err


def test_files_and_directories_are_not_mistaken_for_each_other(
    beir_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    assert prepare(beir_source, tmp_path / "file", tmp_path / "statistics.md") == 2
    assert prepare(beir_source, tmp_path / "collection", tmp_path / "folder") == 2
    assert prepare(beir_source, tmp_path / "file" / "collection", tmp_path / "statistics.md") == 2
    lines = capsys.readouterr().err.splitlines()
    assert ["a file is where a directory goes" in lines[0], "a directory is where a file goes" in lines[1]] == [
        True
    ] * 2
    assert f"{tmp_path / 'file'} is a file, not a directory" in lines[2]
    assert not (tmp_path / "collection").exists()


@pytest.mark.parametrize("output", [".", "..", "/", "deep/.."])
def test_the_working_directory_is_no_output(
    beir_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    work = tmp_path / "work"
    (work / "deep").mkdir(parents=True)
    monkeypatch.chdir(work)
    assert prepare(beir_source, output, tmp_path / "statistics.md") == 2
    assert work.is_dir()


def test_outputs_lie_apart(tmp_path: Path) -> None:
    outputs = {"collection": tmp_path / "out", "statistics": tmp_path / "out" / "statistics.md"}
    with pytest.raises(InputError, match=r"holds .* which is --statistics"):
        check_outputs({}, outputs, {})
    with pytest.raises(InputError, match="is also --statistics"):
        check_outputs({}, {"collection": tmp_path / "out", "statistics": tmp_path / "out" / "."}, {})


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"shards_uri": "{}/index/shards"}, True),
        ({"shards_uri": "{}"}, False),
        ({"checkpoint_uri": "s3://bucket/index"}, False),
        ({"encoders": "e5,mine={}/index#test"}, True),
        ({"zero_shot": "{}/index/scifact#test, other=s3://x"}, False),  # nothing is there
        ({"eval": {"runs": "a={}/index"}}, True),
        ({"splits": "index"}, False),
    ],
)
def test_places_in_settings_are_not_erased(tmp_path: Path, settings: dict[str, object], refused: bool) -> None:
    (tmp_path / "index").mkdir()
    filled = {
        name: {k: v.format(tmp_path) for k, v in value.items()}
        if isinstance(value, dict)
        else str(value).format(tmp_path)
        for name, value in settings.items()
    }
    if not refused:
        check_outputs({}, {"index": tmp_path / "index"}, filled)
        return
    with pytest.raises(InputError, match=r"is also|holds"):
        check_outputs({}, {"index": tmp_path / "index"}, filled)


def test_a_mounted_directory_is_no_output() -> None:
    mounted = next(path for path in map(Path, ("/dev/shm", "/proc", "/dev")) if os.path.ismount(path))
    with pytest.raises(InputError, match="mounted"):
        check_outputs({}, {"index": mounted}, {})
