"""A store that is a prefix of an S3 bucket, through boto3."""

from __future__ import annotations

import builtins
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber

from llm_retriever.errors import InputError
from llm_retriever.files.drafts import draft_of, drafting
from llm_retriever.processes.crashes import TransferError, was_restarted
from llm_retriever.stores.interface import Entry, Store, joined, safe_key

_MEBIBYTE = 2**20
PART_BYTES = 16 * _MEBIBYTE
COPIED_AT_ONCE = 256 * _MEBIBYTE
"""Of an object that S3 copies itself; it refuses more than 5 GiB in one request, and answers when it is done."""
CONCURRENCY = 16
ATTEMPTS = 6
_KEYS_PER_DELETE = 1000
"""The most that S3 takes in one DeleteObjects."""
# Answers to a conditional write: the object exists, or is another; it is gone; another conditional write of it is under
# way, try again; the server knows none.
_EXISTS, _GONE, _CONFLICT, _NOT_IMPLEMENTED = 412, 404, 409, 501
_UNCONDITIONAL = "this store has no conditional writes: let one run at a time change it"
_MISSING = {"NoSuchKey", "404", "NotFound"}
_ACCESS = "check the bucket's policy and the credentials in the environment"
# What a user can mend, by S3's error code. Only the code is shown: a server's message may repeat an access key.
_HINTS = {
    "NoSuchBucket": ("the bucket does not exist", "create it, or correct the URI and the endpoint"),
    "InvalidBucketName": ("that is not a bucket name", "correct the URI"),
    "AccessDenied": ("access is refused", _ACCESS),
    "AllAccessDisabled": ("access is refused", _ACCESS),
    "403": ("access is refused", _ACCESS),
    "InvalidAccessKeyId": ("access is refused: the access key is unknown", _ACCESS),
    "SignatureDoesNotMatch": ("access is refused: the secret key does not fit", _ACCESS),
    "ExpiredToken": ("access is refused: the session token has expired", "renew the credentials in the environment"),
    "InvalidToken": ("access is refused: the session token is not valid", "renew the credentials in the environment"),
    "PermanentRedirect": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set AWS_REGION to the bucket's region"),
}


class S3Store(Store):
    """A store that is a prefix of an S3 bucket.

    Args:
        uri: `s3://bucket` or `s3://bucket/prefix`.

    Raises:
        InputError: The URI names no bucket, or carries credentials.
    """

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if "@" in bucket:
            raise InputError(
                "credentials do not belong into a URI", file="s3://…", hint="put them into the environment"
            )
        if not bucket:
            raise InputError("the URI names no bucket", file=uri, hint="give s3://bucket/prefix")
        self.bucket, self.prefix = bucket, safe_key(prefix)
        super().__init__(f"s3://{bucket}/{self.prefix}".rstrip("/"))
        with self._explained(""):
            self._client = _client()

    def list(self, prefix: str = "") -> builtins.list[Entry]:
        """Lists all objects below a prefix, by key."""
        start = self._key(prefix)
        cut = len(self._key("x")) - 1
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=f"{start}/" if start else ""
        )
        with self._explained(prefix):
            # A key that ends with a slash is how other tools make an empty folder visible.
            rows = [row for page in pages for row in page.get("Contents", []) if not row["Key"].endswith("/")]
        return sorted(
            Entry(row["Key"][cut:], row["Size"], row["ETag"].strip('"'), row["LastModified"].timestamp())
            for row in rows
        )

    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""
        # Unlike HEAD, which answers 404 to both, a listing tells a missing key from a missing bucket.
        with self._explained(key):
            answer = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(key), MaxKeys=1)
        return any(row["Key"] == self._key(key) for row in answer.get("Contents", []))

    def read(self, key: str) -> bytes:
        """Returns the content of an object; a connection that breaks off is taken up again."""
        return self._get(key)[0]

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Returns the content of an object and its ETag, of one request; None if there is no such object."""
        return self._get(key) if self.exists(key) else None

    def _get(self, key: str) -> tuple[bytes, str]:
        attempt = 0
        while True:
            attempt += 1
            try:
                with self._explained(key):
                    answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
                    return answer["Body"].read(), answer["ETag"]
            except _BrokenOffError:
                if attempt == ATTEMPTS:
                    raise

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Writes an object in a single request, which S3 makes atomic."""
        try:
            self._put(key, data, {"IfNoneMatch": "*"} if only_if_absent else {})
        except _NoConditionsError:
            if self.exists(key):
                raise FileExistsError(self.uri_of(key)) from None
            self._put(key, data, {})

    def replace(self, key: str, data: bytes, tag: str) -> None:
        """Writes an object in a single request, if its ETag is this one."""
        try:
            self._put(key, data, {"IfMatch": tag})
        except _NoConditionsError:
            stored = self.read_tagged(key)
            if stored is None or stored[1] != tag:
                raise FileExistsError(self.uri_of(key)) from None
            self._put(key, data, {})

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> None:
        """Writes once, again while another conditional write is under way.

        Raises:
            FileExistsError: The condition does not hold.
            _NoConditionsError: The server has no conditional writes; this is printed.
        """
        for attempt in range(ATTEMPTS):
            with self._explained(key):
                try:
                    self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
                except ClientError as error:
                    status = error.response["ResponseMetadata"].get("HTTPStatusCode")
                    if condition and status == _NOT_IMPLEMENTED:
                        print(f"{self.uri_of(key)}: {_UNCONDITIONAL}", file=sys.stderr, flush=True)
                        raise _NoConditionsError from None
                    if status == _EXISTS or ("IfMatch" in condition and status == _GONE):
                        raise FileExistsError(self.uri_of(key)) from None
                    if status != _CONFLICT or attempt == ATTEMPTS - 1:
                        raise
                else:
                    return
            time.sleep(0.1 * 2**attempt)

    def delete(self, prefix: str) -> None:
        """Removes an object and all objects below this prefix, if any."""
        keys = [self._key(entry.key) for entry in self.list(prefix)]
        if prefix and self.exists(prefix):
            keys.append(self._key(prefix))
        with self._explained(prefix):
            for start in range(0, len(keys), _KEYS_PER_DELETE):
                rows = [{"Key": key} for key in keys[start : start + _KEYS_PER_DELETE]]
                answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": rows, "Quiet": True})
                for error in answer.get("Errors", []):
                    raise self._explanation(error.get("Code", ""), prefix)

    def _send(self, transfers: Sequence[tuple[Path, str]], moved: Callable[[int], None]) -> None:
        with self._explained(""), TransferManager(self._client, _TRANSFER) as manager:
            futures = [
                manager.upload(str(path), self.bucket, self._key(key), subscribers=[_Moved(moved)])
                for path, key in transfers
            ]
            for future in futures:
                future.result()

    def _receive(self, transfers: Sequence[tuple[Entry, Path]], moved: Callable[[int], None]) -> None:
        with drafting(*(path for _, path in transfers)) as token:
            self._receive_drafts([(entry, path, draft_of(path, token)) for entry, path in transfers], moved)

    def _receive_drafts(self, transfers: Sequence[tuple[Entry, Path, Path]], moved: Callable[[int], None]) -> None:
        # s3transfer itself writes to a temporary name, but one that is a draft only because the name it ends is.
        try:
            with self._explained(""), TransferManager(self._client, _TRANSFER) as manager:
                futures = [
                    manager.download(self.bucket, self._key(entry.key), str(draft), subscribers=[_Moved(moved)])
                    for entry, _, draft in transfers
                ]
                for future in futures:
                    future.result()
            for entry, path, draft in transfers:
                if draft.stat().st_size != entry.size:
                    raise OSError(f"{self.uri_of(entry.key)}: changed while it was transferred")
                draft.replace(path)
        finally:
            for _, _, draft in transfers:
                draft.unlink(missing_ok=True)

    def _duplicate(self, transfers: Sequence[tuple[Entry, str]], moved: Callable[[int], None]) -> None:
        with self._explained(""), TransferManager(self._client, _COPY) as manager:
            futures = [
                manager.copy(
                    {"Bucket": self.bucket, "Key": self._key(entry.key)},
                    self.bucket,
                    self._key(key),
                    subscribers=[_Moved(moved)],
                )
                for entry, key in transfers
            ]
            for future in futures:
                future.result()

    def _key(self, key: str) -> str:
        return joined(self.prefix, key)

    @contextlib.contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._explanation(error.response.get("Error", {}).get("Code", ""), key) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise InputError(
                "there are no credentials for S3", file=self.uri, hint="put them into the environment"
            ) from None
        except ParamValidationError:
            raise InputError("that is not a bucket name", file=self.uri, hint="correct the URI") from None
        except EndpointConnectionError:
            if was_restarted() or self._client.meta.endpoint_url in _ANSWERED:
                raise TransferError(f"{self.uri}: the S3 endpoint does not answer any more") from None
            raise InputError(
                "the S3 endpoint cannot be reached", file=self.uri, hint="check AWS_ENDPOINT_URL_S3 and the network"
            ) from None
        except (IncompleteReadError, HTTPClientError) as error:
            raise _BrokenOffError(f"{self.uri}: the connection broke off ({type(error).__name__})") from None
        except (BotoCoreError, Boto3Error, RetriesExceededError) as error:
            raise TransferError(f"{self.uri}: the transfer failed ({type(error).__name__})") from None

    def _explanation(self, code: str, key: str) -> Exception:
        if code in _MISSING:
            return InputError("no such object", file=self.uri_of(safe_key(key)), hint="check the URI")
        if code in _HINTS:
            problem, hint = _HINTS[code]
            return InputError(problem, file=self.uri, hint=hint)
        return TransferError(f"{self.uri}: S3 answers {code or 'with an error'}")


_ANSWERED: set[str] = set()
"""Endpoints that have answered this process: one that does not answer later is away, not misspelt."""


class _NoConditionsError(Exception):
    """The server has no conditional writes."""


class _BrokenOffError(TransferError):
    """The connection ended within an answer."""


class _Moved(BaseSubscriber):
    """Hands the bytes of every transferred part to a function."""

    def __init__(self, moved: Callable[[int], None]) -> None:
        self._moved = moved

    def on_progress(self, future: Any, bytes_transferred: int, **rest: Any) -> None:
        """Called by s3transfer, from its threads."""
        self._moved(bytes_transferred)


_TRANSFER = TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=CONCURRENCY)
_COPY = TransferConfig(
    multipart_threshold=COPIED_AT_ONCE, multipart_chunksize=COPIED_AT_ONCE, max_concurrency=CONCURRENCY
)


def _client() -> Any:
    """Returns a client whose endpoint, region and credentials come from the environment."""
    # Making one takes longer than most requests. A forked process must not share its parent's connections.
    return _client_of(os.getpid(), tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


@functools.lru_cache(maxsize=4)
def _client_of(process: int, environment: tuple[tuple[str, str], ...]) -> Any:
    variables = dict(environment)
    settings: dict[str, Any] = {"retries": {"mode": "standard"}, "max_pool_connections": CONCURRENCY + 4}
    if "AWS_MAX_ATTEMPTS" not in variables:
        settings["retries"]["total_max_attempts"] = ATTEMPTS
    own_endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    if own_endpoint and "AWS_REQUEST_CHECKSUM_CALCULATION" not in variables:
        # Many S3 servers other than AWS refuse trailing checksums; the manifest's SHA-256 protects the content there.
        settings["request_checksum_calculation"] = "when_required"
    try:
        client = boto3.session.Session().client("s3", config=Config(**settings))
    except ValueError:
        raise InputError("is not a URL", field="AWS_ENDPOINT_URL_S3", hint="give http(s)://host:port") from None
    client.meta.events.register("after-call.s3", lambda **_: _ANSWERED.add(client.meta.endpoint_url))
    return client
