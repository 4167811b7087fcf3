"""Publishing: whole or absent, never changed, and noticed when it is not what it was."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from llm_retriever.errors import InputError
from llm_retriever.stores.opening import MANIFEST, Store, fetched, open_store, publish
from tests.s3_server import REFUSED, S3Server
from tests.stores.conftest import contents

# ---- publishing


def test_the_manifest_is_written_last(s3: S3Server, directory: Path) -> None:
    publish(directory, f"s3://{s3.bucket}/v1")
    written = [path for method, path in s3.requests if method == "PUT"]
    assert len(written) == 5
    assert written[-1].endswith(MANIFEST)


def test_what_an_interrupted_deletion_has_left_is_completed(store: Store, directory: Path, tmp_path: Path) -> None:
    publish(directory, store.uri)
    store.delete("a.txt")
    publish(directory, store.uri)
    store.download("", tmp_path / "back")
    assert contents(tmp_path / "back").items() >= contents(directory).items()


def test_a_killed_publish_leaves_no_manifest_and_can_be_repeated(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/v1"
    s3.fault = lambda request: ("403 Forbidden", REFUSED) if request["PATH_INFO"].endswith("bytes.bin") else None
    with pytest.raises(InputError):
        publish(directory, uri)
    assert not open_store(uri).exists(MANIFEST)
    s3.fault = None
    publish(directory, uri)
    with fetched(uri) as copy:
        assert {n: c for n, c in contents(copy).items() if n != MANIFEST} == contents(directory)


def test_what_is_published_is_never_overwritten(root: str, directory: Path) -> None:
    publish(directory, root)
    publish(directory, root)
    (directory / "a.txt").write_text("another")
    with pytest.raises(InputError, match="something else is published there"):
        publish(directory, root)
    assert open_store(root).read("a.txt") == b"a\n"


def test_a_changed_byte_is_noticed(root: str, directory: Path, tmp_path: Path) -> None:
    publish(directory, root)
    open_store(root).write("a.txt", b"b\n")
    with pytest.raises(InputError, match=r"'a.txt' does not have the checksum of the manifest; fetch it again"):
        open_store(root).download("", tmp_path / "back")


def test_a_missing_file_is_noticed(root: str, directory: Path, tmp_path: Path) -> None:
    publish(directory, root)
    open_store(root).delete("deep/empty")
    with pytest.raises(InputError, match="'deep/empty' is missing"):
        open_store(root).download("", tmp_path / "back")


def test_a_manifest_cannot_point_outside(root: str, directory: Path, tmp_path: Path) -> None:
    publish(directory, root)
    manifest = json.loads(open_store(root).read(MANIFEST))
    manifest["files"][0]["name"] = "../directory/a.txt"
    open_store(root).write(MANIFEST, json.dumps(manifest).encode())
    with pytest.raises(InputError, match="is missing"):
        open_store(root).download("", tmp_path / "back")


def test_a_local_directory_is_fetched_without_a_copy(directory: Path) -> None:
    with fetched(directory) as path:
        assert path == directory
    with fetched(f"file://{directory}") as path:
        assert path == directory


def test_a_fetched_prefix_is_gone_afterwards(
    s3: S3Server, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(directory, f"s3://{s3.bucket}/x")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    with fetched(f"s3://{s3.bucket}/x") as path:
        assert path.parent == tmp_path / "scratch"
        assert contents(path) == contents(directory) | {MANIFEST: (path / MANIFEST).read_bytes()}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_missing_local_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: no such directory"), fetched(tmp_path / "gone"):
        pass
