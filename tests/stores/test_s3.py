"""S3 alone: foreign keys, parts, and a server that is busy, breaks off or changes its mind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from llm_retriever.errors import InputError
from llm_retriever.stores import s3 as s3_module
from llm_retriever.stores.opening import fetched, open_store, publish
from tests.s3_server import REFUSED, S3Server
from tests.stores.conftest import contents

BUSY = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"


@pytest.mark.parametrize("key", ["x/../../escaped", "x//escaped", "x/a\\..\\escaped", "x/./escaped"])
def test_a_foreign_key_cannot_leave_the_directory_it_is_downloaded_to(s3: S3Server, tmp_path: Path, key: str) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key=key, Body=b"!")
    s3.client().put_object(Bucket=s3.bucket, Key="x/harmless", Body=b"!")
    with pytest.raises(InputError, match="does not fit into a directory"):
        open_store(f"s3://{s3.bucket}").download("x", tmp_path / "in" / "here")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_key_that_is_file_and_folder_at_once_is_bad_input(s3: S3Server, tmp_path: Path) -> None:
    for key in ("x/a", "x/a/b"):
        s3.client().put_object(Bucket=s3.bucket, Key=key, Body=b"!")
    with pytest.raises(InputError, match="'a/b' does not fit into a directory"):
        open_store(f"s3://{s3.bucket}/x").download("", tmp_path / "here")


def test_folder_markers_of_other_tools_are_passed_over(s3: S3Server, tmp_path: Path) -> None:
    for key in ("x/", "x/a/", "x/a/b"):
        s3.client().put_object(Bucket=s3.bucket, Key=key, Body=b"")
    open_store(f"s3://{s3.bucket}/x").download("", tmp_path / "here")
    assert contents(tmp_path / "here") == {"a/b": b""}


def test_large_files_travel_in_parts_and_arrive_whole(s3: S3Server, tmp_path: Path) -> None:
    content = os.urandom(2 * s3_module.PART_BYTES + 12345)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(content)
    publish(tmp_path / "out", f"s3://{s3.bucket}/big")
    assert s3.client().head_object(Bucket=s3.bucket, Key="big/weights")["ETag"].endswith('-3"')
    with fetched(f"s3://{s3.bucket}/big") as copy:
        assert (copy / "weights").read_bytes() == content


def test_an_interrupted_upload_leaves_no_parts_behind(s3: S3Server, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(bytes(2 * s3_module.PART_BYTES))
    s3.fault = lambda request: ("403 Forbidden", REFUSED) if "partNumber=2" in request["QUERY_STRING"] else None
    with pytest.raises(InputError, match="access is refused"):
        open_store(f"s3://{s3.bucket}").upload(tmp_path / "out")
    assert s3.client().list_multipart_uploads(Bucket=s3.bucket).get("Uploads", []) == []


def test_large_objects_are_copied_in_parts_by_the_server_itself(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 2**20  # the least that S3 takes
    monkeypatch.setattr(s3_module, "_COPY", TransferConfig(multipart_threshold=part, multipart_chunksize=part))
    content = os.urandom(2 * part + 12345)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_bytes(content)
    store = open_store(f"s3://{s3.bucket}")
    store.upload(tmp_path / "out", "a")
    s3.requests.clear()
    store.copy("a", "b")
    assert s3.client().head_object(Bucket=s3.bucket, Key="b/weights")["ETag"].endswith('-3"')
    assert ("GET", f"/{s3.bucket}/a/weights") not in s3.requests
    assert store.read("b/weights") == content


def test_a_failing_download_leaves_no_file_under_its_name(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3.bucket}")
    store.upload(directory)
    s3.fault = lambda request: ("403 Forbidden", REFUSED) if request["PATH_INFO"].endswith("bytes.bin") else None
    with pytest.raises(InputError, match="access is refused"):
        store.download("", tmp_path / "back")
    assert not [name for name in contents(tmp_path / "back") if "bytes.bin" in name or "partial" in name]


def failing(times: int) -> Any:
    """A fault for the first requests of each kind."""
    left: dict[tuple[str, str], int] = {}

    def fault(request: dict[str, Any]) -> tuple[str, bytes] | None:
        kind = (request["REQUEST_METHOD"], request["PATH_INFO"])
        left[kind] = left.get(kind, times) - 1
        return ("503 Slow Down", BUSY) if left[kind] >= 0 else None

    return fault


def test_a_busy_server_is_asked_again(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    s3.fault = failing(times=1)
    publish(directory, f"s3://{s3.bucket}/x")
    s3.fault = failing(times=1)
    open_store(f"s3://{s3.bucket}").download("x", tmp_path / "back", only=lambda name: name == "a.txt")
    assert contents(tmp_path / "back") == {"a.txt": b"a\n"}


def test_a_server_that_stays_busy_ends_the_transfer_with_its_uri(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.fault = failing(times=99)
    with pytest.raises(OSError, match=f"s3://{s3.bucket}: S3 answers SlowDown"):
        open_store(f"s3://{s3.bucket}").list()


def breaking_off(times: int) -> Any:
    """A fault for the first reads of every object: the connection ends in the middle of the content."""
    left: dict[str, int] = {}

    def fault(request: dict[str, Any]) -> tuple[str, bytes, int] | None:
        key = request["PATH_INFO"]
        if request["REQUEST_METHOD"] != "GET" or not is_content(request) or key.endswith("/empty"):
            return None
        left[key] = left.get(key, times) - 1
        return ("200 OK", b"a", 1000) if left[key] >= 0 else None

    return fault


def test_a_connection_that_breaks_off_is_taken_up_again(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3.bucket}")
    store.upload(directory)
    s3.fault = breaking_off(times=2)
    assert store.read("a.txt") == b"a\n"
    s3.fault = breaking_off(times=2)
    store.download("", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(directory)


def test_connections_that_always_break_off_end_the_transfer_with_its_uri(
    s3: S3Server, directory: Path, tmp_path: Path
) -> None:
    store = open_store(f"s3://{s3.bucket}")
    store.upload(directory)
    s3.fault = breaking_off(times=99)
    with pytest.raises(OSError, match=f"s3://{s3.bucket}: the connection broke off"):
        store.read("a.txt")
    with pytest.raises(OSError, match=f"s3://{s3.bucket}: the transfer failed"):
        store.download("", tmp_path / "back")
    assert contents(tmp_path / "back") == {}


def test_an_object_that_changes_while_it_is_transferred_is_noticed(s3: S3Server, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3.bucket}")
    store.write("k", b"long content")
    s3.fault = lambda request: (
        ("200 OK", b"short") if request["REQUEST_METHOD"] == "GET" and is_content(request) else None
    )
    with pytest.raises(OSError, match=f"s3://{s3.bucket}/k: changed while it was transferred"):
        store.download("", tmp_path / "back")
    assert contents(tmp_path / "back") == {}


def is_content(request: dict[str, Any]) -> bool:
    return "list-type" not in request["QUERY_STRING"]


def test_a_conditional_write_that_meets_another_is_tried_again(s3: S3Server) -> None:
    conflict = b"<Error><Code>ConditionalRequestConflict</Code></Error>"
    answers = [("409 Conflict", conflict)] * 2
    s3.fault = lambda request: answers.pop() if answers and request["REQUEST_METHOD"] == "PUT" else None
    store = open_store(f"s3://{s3.bucket}")
    store.write("lock", b"1", only_if_absent=True)
    assert store.read("lock") == b"1"


def test_a_server_without_conditional_writes_is_told_of_and_still_refuses_what_it_can_see(
    s3: S3Server, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(request: dict[str, Any]) -> tuple[str, bytes] | None:
        conditional = {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & set(request)
        return ("501 Not Implemented", b"<Error><Code>NotImplemented</Code></Error>") if conditional else None

    s3.fault = refuse
    store = open_store(f"s3://{s3.bucket}")
    store.write("alias", b"1", only_if_absent=True)
    with pytest.raises(FileExistsError):
        store.write("alias", b"2", only_if_absent=True)
    _, tag = store.read_tagged("alias") or (b"", "")
    store.replace("alias", b"2", tag)
    with pytest.raises(FileExistsError):
        store.replace("alias", b"3", tag)
    assert store.read("alias") == b"2"
    told = f"s3://{s3.bucket}/alias: this store has no conditional writes: let one run at a time change it"
    assert capsys.readouterr().err.splitlines() == [told] * 4


@pytest.mark.parametrize(("calculation", "sent"), [("when_supported", True), ("when_required", False), (None, False)])
def test_checksums_travel_with_the_parts_where_the_server_supports_them(
    s3: S3Server, directory: Path, monkeypatch: pytest.MonkeyPatch, calculation: str | None, sent: bool
) -> None:
    if calculation:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", calculation)
    open_store(f"s3://{s3.bucket}").upload(directory)
    assert any(name.startswith("HTTP_X_AMZ_CHECKSUM") for names in s3.headers for name in names) is sent


def test_a_named_endpoint_needs_no_host_name_per_bucket(
    s3: S3Server, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint.replace("127.0.0.1", "localhost"))
    open_store(f"s3://{s3.bucket}").upload(directory)
    assert all(path.startswith(f"/{s3.bucket}") for _, path in s3.requests)
