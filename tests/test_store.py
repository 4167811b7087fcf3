"""The store: a local directory and an s3:// prefix behave the same, and what arrives is what was sent."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.errors import InputError
from llm_retriever.store import MANIFEST, Store, fetched, open_store, publish
from llm_retriever.stores import s3 as s3_module
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI that a store can be opened at."""
    if request.param == "local":
        return str(tmp_path / "stored")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/some/prefix"


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with text, bytes, an empty file, a nested one and a name that is not ASCII."""
    path = tmp_path / "directory"
    (path / "deep" / "er").mkdir(parents=True)
    (path / "a.txt").write_text("a\n")
    (path / "deep" / "er" / "bytes.bin").write_bytes(bytes(range(256)) * 64)
    (path / "deep" / "empty").touch()
    (path / "deep" / "naïve name+1%.txt").write_text("ü")
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


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


def test_only_the_chosen_names_are_downloaded(store: Store, directory: Path, tmp_path: Path) -> None:
    store.upload(directory, "x")
    store.download("x", tmp_path / "back", only=lambda name: name.endswith(".txt"))
    assert set(contents(tmp_path / "back")) == {"a.txt", "deep/naïve name+1%.txt"}


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


def test_a_failing_download_leaves_no_file_under_its_name(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3.bucket}")
    store.upload(directory)
    s3.fault = lambda request: ("403 Forbidden", REFUSED) if request["PATH_INFO"].endswith("bytes.bin") else None
    with pytest.raises(InputError, match="access is refused"):
        store.download("", tmp_path / "back")
    assert not [name for name in contents(tmp_path / "back") if "bytes.bin" in name or "partial" in name]


REFUSED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
BUSY = b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"


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


# ---- publishing


def test_the_manifest_is_written_last(s3: S3Server, directory: Path) -> None:
    publish(directory, f"s3://{s3.bucket}/v1")
    written = [path for method, path in s3.requests if method == "PUT"]
    assert len(written) == 5
    assert written[-1].endswith(MANIFEST)


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


def test_a_fetched_prefix_is_gone_afterwards(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    publish(directory, f"s3://{s3.bucket}/x")
    with fetched(f"s3://{s3.bucket}/x", cache_parent=tmp_path / "cache") as path:
        assert path.parent == tmp_path / "cache"
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_local_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone: no such directory"), fetched(tmp_path / "gone"):
        pass


# ---- URIs and access


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("gs://bucket/x", "gs:// is not a kind of URI"),
        ("https://host/bucket", "https:// is not a kind of URI"),
        ("file://host/x", "file:// is not a kind of URI"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/a/../b", "not a key below a store"),
        ("", "the URI is empty"),
    ],
)
def test_a_uri_of_another_kind_is_bad_input(uri: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        open_store(uri)


def test_a_uri_with_credentials_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="credentials do not belong into a URI") as error:
        open_store("s3://KEY:SECRET@bucket/x")
    assert "SECRET" not in str(error.value)


def every_operation(store: Store, directory: Path, target: Path) -> list[Any]:
    return [
        store.list,
        lambda: store.exists("k"),
        lambda: store.read("k"),
        lambda: store.write("k", b""),
        lambda: store.delete("k"),
        lambda: store.upload(directory, "x"),
        lambda: store.download("x", target),
    ]


def test_a_bucket_that_does_not_exist_is_bad_input(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    for operation in every_operation(open_store("s3://nowhere/x"), directory, tmp_path / "t"):
        with pytest.raises(InputError, match=r"s3://nowhere/x: the bucket does not exist; create it, or correct"):
            operation()


def test_a_bucket_that_refuses_access_is_bad_input(s3: S3Server, directory: Path, tmp_path: Path) -> None:
    s3.fault = lambda request: ("403 Forbidden", REFUSED)
    for operation in every_operation(open_store(f"s3://{s3.bucket}/x"), directory, tmp_path / "t"):
        with pytest.raises(InputError, match=r"s3://models/x: access is refused; check the bucket's policy"):
            operation()


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "SomethingNew"])
def test_a_servers_answer_that_repeats_credentials_is_not_repeated(s3: S3Server, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>{ACCESS_KEY} {SECRET_KEY}</Message></Error>".encode()
    s3.fault = lambda request: ("403 Forbidden", body)
    with pytest.raises((InputError, OSError)) as error:
        open_store(f"s3://{s3.bucket}/x").list()
    assert ACCESS_KEY not in str(error.value)
    assert SECRET_KEY not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__


def test_missing_credentials_are_bad_input(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match="there are no credentials for S3; put them into the environment"):
        open_store(f"s3://{s3.bucket}/x").list()


def test_an_endpoint_that_nobody_answers_at_is_bad_input(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match="s3://models/x: the S3 endpoint cannot be reached"):
        open_store(f"s3://{s3.bucket}/x").list()


def test_a_name_that_no_bucket_can_have_is_bad_input(s3: S3Server) -> None:
    with pytest.raises(InputError, match="that is not a bucket name; correct the URI"):
        open_store("s3://Not A Bucket/x").list()


def test_an_endpoint_that_is_not_a_url_is_bad_input(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio:9000")
    with pytest.raises(InputError, match='field "AWS_ENDPOINT_URL_S3": is not a URL'):
        open_store(f"s3://{s3.bucket}/x")


def test_a_file_in_the_way_of_a_directory_is_bad_input(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "file").touch()
    for inside in ("file", "file/below"):
        with pytest.raises(InputError, match=r"a file is in the way of this directory"):
            open_store(tmp_path / inside).write("key", b"", only_if_absent=True)
        with pytest.raises(InputError, match=r"a file is in the way of this directory"):
            open_store(tmp_path / inside).upload(directory)
    with pytest.raises(InputError, match="directory/deep: there is a directory of this name"):
        open_store(directory).write("deep", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_refuses_is_bad_input(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match="locked/x: access is refused"):
        publish(directory, str(tmp_path / "locked" / "x"))
