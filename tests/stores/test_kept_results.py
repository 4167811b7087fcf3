"""Finished results that are kept: taken when they are whole, and by nobody otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_retriever.stores.kept_results import KeptResults
from tests.s3_server import S3Server

NAME = "index-0123"


def written(directory: Path, text: str = "one") -> Path:
    (directory / "deep").mkdir(parents=True)
    (directory / "a.txt").write_text(text)
    (directory / "deep" / "b.bin").write_bytes(b"\0" * 100)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_what_is_kept_is_taken(tmp_path: Path) -> None:
    kept, result = KeptResults(str(tmp_path / "store")), written(tmp_path / "result")
    assert not kept.take(NAME, tmp_path / "early")
    assert not (tmp_path / "early").exists()
    assert kept.keep(NAME, result)
    assert kept.take(NAME, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(result)
    assert not kept.take("index-4567", tmp_path / "other")


def test_it_works_in_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    kept, result = KeptResults(f"s3://{s3.bucket}/results"), written(tmp_path / "result")
    assert kept.keep(NAME, result)
    assert not kept.keep(NAME, written(tmp_path / "second", "two"))
    assert kept.take(NAME, tmp_path / "copy")
    assert content(tmp_path / "copy") == content(result)
    kept.discard(NAME)
    assert kept.store.list() == []


def test_of_two_writers_the_first_stays_and_nothing_of_the_second(tmp_path: Path) -> None:
    kept = KeptResults(str(tmp_path / "store"))
    assert kept.keep(NAME, written(tmp_path / "one", "one"))
    before = content(tmp_path / "store")
    assert not kept.keep(NAME, written(tmp_path / "two", "two"))
    assert content(tmp_path / "store") == before


@pytest.mark.parametrize("damage", ["shortened", "changed", "missing", "half a mark", "another's folder"])
def test_what_is_damaged_is_removed_and_can_be_kept_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, result = KeptResults(str(tmp_path / "store")), written(tmp_path / "result")
    kept.keep(NAME, result)
    mark = tmp_path / "store" / f"{NAME}.json"
    file = tmp_path / "store" / json.loads(mark.read_text())["folder"] / "deep" / "b.bin"
    if damage == "shortened":
        file.write_bytes(b"\0" * 99)
    elif damage == "changed":
        file.write_bytes(b"\0" * 99 + b"\1")
    elif damage == "missing":
        file.unlink()
    elif damage == "half a mark":
        mark.write_text(mark.read_text()[:40])
    else:
        mark.write_text(mark.read_text().replace(f"{NAME}/", "index-4567/"))
    assert not kept.take(NAME, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    assert f"{NAME} is damaged, and is made anew" in capsys.readouterr().err
    assert not mark.exists()
    assert kept.keep(NAME, result)
    assert kept.take(NAME, tmp_path / "copy")


def test_what_a_writer_left_that_was_killed_is_never_taken(tmp_path: Path) -> None:
    kept, result = KeptResults(str(tmp_path / "store")), written(tmp_path / "result")
    kept.store.upload(result, f"{NAME}/killed")
    assert not kept.take(NAME, tmp_path / "copy")
    assert kept.keep(NAME, result)
    assert kept.take(NAME, tmp_path / "copy")


def test_an_interrupted_writer_removes_what_it_has_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, result = KeptResults(str(tmp_path / "store")), written(tmp_path / "result")

    def stopped(*_: object, **__: object) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(kept.store, "write", stopped)
    with pytest.raises(SystemExit):
        kept.keep(NAME, result)
    assert content(tmp_path / "store") == {}
