"""A local directory or an s3:// prefix behind one small interface, and the publishing of directories to it.

Nothing but the URI tells which of the two it is. Endpoint, region and credentials of S3 come from the environment alone
(`AWS_ENDPOINT_URL_S3`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, a service account, …) and never appear in a message.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.stores.interface import MANIFEST, Entry, Store, manifest_of
from llm_retriever.stores.local import LocalStore

__all__ = ["MANIFEST", "Entry", "LocalStore", "Store", "fetched", "manifest_of", "open_store", "publish"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_store(uri: str | Path) -> Store:
    """The store at a directory, a `file://` URI or an `s3://bucket/prefix`; nothing is contacted or made yet.

    Raises:
        InputError: The URI is of another kind, or is not well-formed.
    """
    text = str(uri)
    scheme = _SCHEME.match(text)
    if not text:
        raise InputError("the URI is empty", mend="give a directory or s3://bucket/prefix")
    if scheme is None:
        return LocalStore(text)
    if scheme[1] == "file" and text.startswith("file:///"):
        return LocalStore(text.removeprefix("file://"))
    if scheme[1] == "s3":
        # boto3 takes longer to import than a local store takes to do its work.
        from llm_retriever.stores.s3 import S3Store

        return S3Store(text)
    raise InputError(
        f"{scheme[0]} is not a kind of URI that can be used here",
        file=text,
        mend="give a directory or s3://bucket/prefix",
    )


@contextlib.contextmanager
def fetched(uri: str | Path, cache_parent: Path | None = None) -> Iterator[Path]:
    """Yields a local directory with the content of `uri`: the directory itself, or a temporary copy of an s3:// prefix.

    Args:
        uri: A directory or s3://bucket/prefix.
        cache_parent: Where the temporary copy is made; None is the system's place for temporary files.

    Raises:
        InputError: There is nothing at `uri`, or it cannot be used.
    """
    store = open_store(uri)
    if isinstance(store, LocalStore):
        if not store.directory.exists():
            raise InputError(
                "no such directory", file=str(uri), mend="give an existing directory or s3://bucket/prefix"
            )
        yield store.directory
        return
    if cache_parent is not None:
        cache_parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetched-", dir=cache_parent) as copy:
        store.download("", Path(copy))
        yield Path(copy)


def publish(directory: str | Path, uri: str, manifest: dict[str, Any] | None = None) -> None:
    """Uploads a directory's files, and last a manifest with their SHA-256: a prefix without one is not complete.

    What is published stays: publishing the same files again does nothing.

    Args:
        directory: What to publish.
        uri: Where to.
        manifest: Its `manifest_of`, if known already; files are read once more if not.

    Raises:
        InputError: There is something else published at `uri`, or the store cannot be used.
    """
    store = open_store(uri)
    text = json.dumps(manifest or manifest_of(Path(directory)), indent=2) + "\n"
    if not store.exists(MANIFEST):
        store.upload(directory)
        with contextlib.suppress(FileExistsError):
            store.write(MANIFEST, text.encode(), only_if_absent=True)
    if store.read(MANIFEST).decode() != text:
        raise InputError("something else is published there", file=uri, mend="publish under another prefix")
