"""Opens a local directory or an s3:// prefix as a store, and publishes directories to it.

Nothing but the URI tells which of the two it is. Endpoint, region and credentials of S3 come from the environment alone
(`AWS_ENDPOINT_URL_S3`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, a service account, …) and never appear in a message.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.stores.interface import MANIFEST, Entry, Store, manifest_of
from llm_retriever.stores.local import LocalStore
from llm_retriever.stores.uris import check_scheme

__all__ = ["MANIFEST", "Entry", "LocalStore", "Store", "fetched", "manifest_of", "missing", "open_store", "publish"]


def open_store(uri: str | Path) -> Store:
    """Returns the store at a directory, a `file://` URI or an `s3://bucket/prefix`; nothing is contacted or made yet.

    Raises:
        InputError: The URI is of another kind, or is not well-formed.
    """
    text = str(uri)
    if not text:
        raise InputError("the URI is empty", hint="give a directory or s3://bucket/prefix")
    # A host in a file:// URI would be another machine.
    check_scheme(text, ("s3://", "file:///"))
    if text.startswith("s3://"):
        # boto3 takes longer to import than a local store takes to do its work.
        from llm_retriever.stores.s3 import S3Store

        return S3Store(text)
    return LocalStore(text.removeprefix("file://"))


@contextlib.contextmanager
def fetched(uri: str | Path) -> Iterator[Path]:
    """Yields a local directory with the content of `uri`: the directory itself, or a temporary copy of an s3:// prefix.

    Args:
        uri: A directory or s3://bucket/prefix.

    Raises:
        InputError: There is nothing at `uri`, or it cannot be used.
    """
    store = open_store(uri)
    if isinstance(store, LocalStore):
        if not store.directory.exists():
            raise InputError(
                "no such directory", file=str(uri), hint="give an existing directory or s3://bucket/prefix"
            )
        yield store.directory
        return
    with tempfile.TemporaryDirectory(prefix="fetched-") as copy:
        store.download("", Path(copy))
        yield Path(copy)


def publish(directory: str | Path, uri: str, manifest: dict[str, Any] | None = None) -> None:
    """Uploads a directory's files, and last a manifest with their SHA-256: a prefix without one is not complete.

    What is published stays: publishing the same files again does nothing. Files that are missing there, as where a deletion
    was interrupted or a lifecycle rule has removed some, are sent again.

    Args:
        directory: What to publish.
        uri: Where to.
        manifest: Its `manifest_of`, if known already; files are read once more if not.

    Raises:
        InputError: There is something else published at `uri`, or the store cannot be used.
    """
    store = open_store(uri)
    content = manifest or manifest_of(Path(directory))
    text = json.dumps(content, indent=2) + "\n"
    if store.exists(MANIFEST):
        _check_same(store, text)
    if missing(store, "", {MANIFEST: len(text.encode())} | {row["name"]: row["size"] for row in content["files"]}):
        store.upload(directory)
        with contextlib.suppress(FileExistsError):
            store.write(MANIFEST, text.encode(), only_if_absent=True)
        _check_same(store, text)


def missing(store: Store, prefix: str, sizes: Mapping[str, int]) -> list[str]:
    """Names of files that are not below a prefix, or not of these sizes in bytes."""
    cut = f"{prefix}/" if prefix else ""
    stored = {entry.key.removeprefix(cut): entry.size for entry in store.list(prefix)}
    return [name for name, size in sizes.items() if stored.get(name) != size]


def _check_same(store: Store, manifest: str) -> None:
    if store.read(MANIFEST).decode() != manifest:
        raise InputError("something else is published there", file=store.uri, hint="publish under another prefix")
