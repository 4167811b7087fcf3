"""An S3 protocol server on the loopback interface whose faults a test can order."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

ACCESS_KEY, SECRET_KEY = "AKIAPLANTEDPLANTED00", "planted-secret-key-0123456789"
REFUSED = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
# A request's answer in place of the server's: status, body and, if it is to break off, the length that it promises.
Answer = tuple[str, bytes] | tuple[str, bytes, int]
Fault = Callable[[dict[str, Any]], Answer | None]


class _Silent(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class S3Server:
    """moto's S3, with one bucket; `fault` may answer a request in its place."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Silent)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.bucket = "models"
        self.fault: Fault | None = None
        self.requests: list[tuple[str, str]] = []
        self.headers: list[set[str]] = []
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        self.headers.append({name for name in environ if name.startswith("HTTP_")})
        answer = self.fault(environ) if self.fault else None
        if answer is None:
            return self._moto(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        length = answer[2] if len(answer) == 3 else len(answer[1])
        start_response(answer[0], [("Content-Type", "application/xml"), ("Content-Length", str(length))])
        return [answer[1]]

    @property
    def environment(self) -> dict[str, str]:
        """What a step finds in its environment."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    @functools.cache  # noqa: B019  (one server, for the whole run)
    def client(self) -> Any:
        """A plain client, to look at the bucket past the code under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3Server]:
    """One server for the whole test run."""
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server with a fresh, empty bucket; the environment points to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_process.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    s3_process.fault = None
    client = s3_process.client()
    for row in client.list_buckets()["Buckets"]:
        _empty(client, row["Name"])
        client.delete_bucket(Bucket=row["Name"])
    client.create_bucket(Bucket=s3_process.bucket)
    s3_process.requests.clear()
    s3_process.headers.clear()
    yield s3_process
    s3_process.fault = None


def _empty(client: Any, bucket: str) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for row in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=row["Key"])
