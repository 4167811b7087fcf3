"""A local directory and an s3:// prefix behave the same, and what arrives is what was sent."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm_retriever.errors import InputError
from llm_retriever.stores.opening import Store, open_store
from tests.stores.conftest import contents


def test_a_directory_comes_back_as_it_was_uploaded(store: Store, directory: Path, tmp_path: Path) -> None:
    store.upload(directory, "x/y")
    store.download("x/y", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(directory)


def test_a_listing_names_keys_relative_to_the_store_with_sizes(store: Store, directory: Path) -> None:
    store.upload(directory, "x")
    assert [(entry.key, entry.size) for entry in store.list("x/deep")] == [
        ("x/deep/empty", 0),
        ("x/deep/er/bytes.bin", 256 * 64),
        ("x/deep/naïve name+1%.txt", 2),
    ]
    assert len(store.list()) == 4


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(store: Store) -> None:
    store.write("v1/x", b"")
    store.write("v10/x", b"")
    assert [entry.key for entry in store.list("v1")] == ["v1/x"]
    store.delete("v1")
    assert [entry.key for entry in store.list()] == ["v10/x"]


def test_the_etag_changes_with_the_content(store: Store) -> None:
    store.write("k", b"one")
    before = store.list()[0].etag
    store.write("k", b"three")
    assert store.list()[0].etag != before


def test_small_objects_are_written_read_found_and_deleted(store: Store) -> None:
    assert not store.exists("a/b")
    assert store.list() == []
    store.write("a/b", b"1")
    store.write("a/b", b"2")
    assert store.exists("a/b")
    assert not store.exists("a")
    assert store.read("a/b") == b"2"
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")


def test_only_one_of_several_writers_creates_an_absent_key(store: Store) -> None:
    def attempt(writer: int) -> int | None:
        barrier.wait()
        try:
            store.write("lock", str(writer).encode(), only_if_absent=True)
        except FileExistsError:
            return None
        return writer

    barrier = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        winners = [w for w in pool.map(attempt, range(6)) if w is not None]
    assert len(winners) == 1
    assert store.read("lock") == str(winners[0]).encode()


def test_only_one_of_several_writers_replaces_what_all_have_read(store: Store) -> None:
    def attempt(writer: int) -> int | None:
        barrier.wait()
        try:
            store.replace("alias", str(writer).encode(), tag)
        except FileExistsError:
            return None
        return writer

    assert store.read_tagged("alias") is None
    store.write("alias", b"old")
    content, tag = store.read_tagged("alias") or (b"", "")
    assert content == b"old"
    barrier = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        winners = [w for w in pool.map(attempt, range(6)) if w is not None]
    assert len(winners) == 1
    assert store.read("alias") == str(winners[0]).encode()
    assert [entry.key for entry in store.list()] == ["alias"]


def test_what_is_gone_is_not_replaced(store: Store) -> None:
    store.write("alias", b"old")
    _, tag = store.read_tagged("alias") or (b"", "")
    store.delete("alias")
    with pytest.raises(FileExistsError):
        store.replace("alias", b"new", tag)
    assert not store.exists("alias")


def test_what_is_not_there_is_bad_input(store: Store, root: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"/gone: no such"):
        store.read("gone")
    with pytest.raises(InputError, match=f"{root}/gone: nothing is there"):
        store.download("gone", tmp_path / "back")
    with pytest.raises(InputError, match="no such directory"):
        store.upload(tmp_path / "gone", "x")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(InputError, match="no files to upload"):
        store.upload(tmp_path / "hollow", "x")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a//b", "a/./b"])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    with pytest.raises(InputError, match="not a key below a store"):
        store.write(key, b"")
    with pytest.raises(InputError, match="not a key below a store"):
        store.list(key)


def test_only_the_chosen_names_are_downloaded(store: Store, directory: Path, tmp_path: Path) -> None:
    store.upload(directory, "x")
    store.download("x", tmp_path / "back", only=lambda name: name.endswith(".txt"))
    assert set(contents(tmp_path / "back")) == {"a.txt", "deep/naïve name+1%.txt"}


def test_a_folder_is_copied_within_the_store(store: Store, directory: Path, tmp_path: Path) -> None:
    store.upload(directory, "x")
    store.copy("x", "y/z")
    store.copy("x", "some", only=lambda name: name.startswith("deep/er/"))
    store.download("y/z", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(directory)
    assert [entry.key for entry in store.list("some")] == ["some/deep/er/bytes.bin"]
    store.delete("x")
    assert store.read("y/z/a.txt") == b"a\n"


def test_a_copy_does_not_change_with_what_it_was_copied_from(store: Store, directory: Path) -> None:
    store.upload(directory, "x")
    store.copy("x", "y")
    store.write("x/a.txt", b"another\n")
    assert store.read("y/a.txt") == b"a\n"
    store.copy("x", "y")
    assert store.read("y/a.txt") == b"another\n"
    store.copy("x", "y")
    assert len(store.list("y")) == 4


def test_a_directory_without_hard_links_is_copied_byte_by_byte(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("not on this file system")

    store = open_store(tmp_path / "stored")
    store.upload(directory, "x")
    store.copy("x", "linked")
    monkeypatch.setattr(os, "link", refuse)
    store.copy("x", "copied")
    inodes = [(tmp_path / "stored" / name / "a.txt").stat().st_ino for name in ("x", "linked", "copied")]
    assert inodes[0] == inodes[1] != inodes[2]
    assert contents(tmp_path / "stored" / "copied") == contents(directory)


def test_nothing_cannot_be_copied(store: Store) -> None:
    with pytest.raises(InputError, match=r"/gone: nothing is there"):
        store.copy("gone", "y")


def test_a_listing_says_when_something_was_written(store: Store) -> None:
    before = time.time()
    store.write("k", b"")
    assert before - 2 <= store.list()[0].modified <= time.time() + 2


def test_drafts_of_killed_writers_are_neither_listed_nor_uploaded(store: Store, directory: Path) -> None:
    (directory / ".a.txt.17.partial").write_text("half")
    (directory / ".shard.17.partial").mkdir()
    (directory / ".shard.17.partial" / "part").write_text("half")
    store.upload(directory)
    assert len(store.list()) == 4


def test_links_are_uploaded_as_what_they_point_to(store: Store, directory: Path, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("from the cache")
    (directory / "link").symlink_to(tmp_path / "blob")
    store.upload(directory)
    assert store.read("link") == b"from the cache"


@pytest.mark.parametrize(("size", "lines"), [(65_000_000, 1), (1_000_000, 0)])
def test_only_large_transfers_report_progress(
    size: int, lines: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "weights").open("wb") as file:
        file.truncate(size)
    open_store(tmp_path / "stored").upload(tmp_path / "out")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert all("upload to" in line and "65/65 (100%) MB" in line for line in said)
