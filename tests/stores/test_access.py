"""URIs, buckets and endpoints that cannot be used: one line that names the URI and the hint, and no credentials."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.adaptation import backbone
from llm_retriever.data import preparation
from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import RESTARTED, TransferError
from llm_retriever.promotion import fingerprint
from llm_retriever.settings import BackboneSettings, CorpusSettings, TuningSettings
from llm_retriever.stores.opening import LocalStore, Store, open_store, publish
from llm_retriever.training.train import training_run
from tests.s3_server import ACCESS_KEY, REFUSED, SECRET_KEY, S3Server


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
        ("http://x", "http:// is not a kind of URI that can be used here; give a directory or s3://bucket/prefix"),
        ("s3:/bucket/x", "s3:/ is not a kind of URI that can be used here; did you mean s3://"),
        ("S3://bucket/x", "did you mean s3://"),
        ("s4://bucket/x", "did you mean s3://"),
        ("s3//bucket/x", "did you mean s3://"),
        ("s3:bucket/x", "did you mean s3://"),
        ("s3:///bucket/x", "names no bucket"),
        ("fil:///tmp/x", "did you mean file://"),
        ("file:/tmp/x", "did you mean file://"),
    ],
)
def test_a_uri_of_another_kind_is_bad_input(uri: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        open_store(uri)


@pytest.mark.parametrize("name", ["data//x", "notes:2024", "./s3:x", "/tmp/a:b", "c:d/e", "s3x/y", "s3"])
def test_a_path_with_colons_and_slashes_is_a_directory(name: str) -> None:
    assert isinstance(open_store(name), LocalStore)


@pytest.mark.parametrize(
    "uri", ["http://x", "s3:/x", "s3//x", "hf:/datasets/a/b", "demo//python-docs", "dmo:python-docs"]
)
def test_every_door_refuses_a_slip_before_any_work(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    doors = [
        lambda: preparation.prepare(CorpusSettings(uri=uri), tmp_path / "out"),
        lambda: fingerprint.corpus_fingerprint(uri),
    ]
    if "dem" not in uri and "dmo" not in uri and not uri.startswith("hf"):
        settings = TuningSettings(checkpoint_uri=uri)
        doors += [
            lambda: backbone.fetch(BackboneSettings(source=uri), tmp_path / "none", tmp_path / "out"),
            lambda: training_run(settings, "tune", tmp_path / "out"),
        ]
    for door in doors:
        with pytest.raises(InputError, match="is not a kind of URI that can be used here"):
            door()
    assert list(tmp_path.iterdir()) == []


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


def test_an_endpoint_that_has_answered_before_is_only_away(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    passing = S3Server()
    for name, value in passing.environment.items():
        monkeypatch.setenv(name, value)
    passing.client().create_bucket(Bucket=passing.bucket)
    store = open_store(f"s3://{passing.bucket}/x")
    assert store.list() == []
    passing.close()
    # A connection that was kept open may break off before a new one is refused.
    with pytest.raises(TransferError, match=r"s3://models/x: the (S3 endpoint does not answer|connection broke off)"):
        store.list()


def test_an_endpoint_is_only_away_for_work_that_was_begun_before(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv(RESTARTED, "1")
    with pytest.raises(TransferError, match="does not answer any more"):
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
