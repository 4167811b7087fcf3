"""Finds what belongs to an index near it: in a published version, or in a run's folder.

    versions/NAME/index    versions/NAME/retriever    versions/NAME/evaluation/hybrid
    RUN/build-index/index    RUN/tune-retriever/retriever    RUN/evaluate/evaluation/hybrid    RUN/prepare-corpus/collection

They are recognised by their digests, whatever the folders are called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.data.collection import MANIFEST_FILE as COLLECTION_FILE
from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing.hybrid import published as hybrid
from llm_retriever.indexing.shards import Manifest
from llm_retriever.models.card import CARD_FILE, RetrieverCard
from llm_retriever.stores.opening import LocalStore, open_store

NEARBY = ("*", "../*/*")
PUBLISHED = "retriever"
ROW = "row:"
"""Before the name of a row of the encoders' table: methods and directories have the same names as some rows."""


def encoder_entry(encoder: Encoder) -> str:
    """Names an encoder for a manifest: its name, or `row:NAME` if `encoders.load(NAME)` loaded it from the table."""
    row = getattr(encoder, "table_row", "")
    return f"{ROW}{row}" if row else encoder.name


def retriever_of(uri: str, manifest: Manifest) -> str:
    """Finds the retriever that made an index.

    Args:
        uri: Where the index lies, a directory or s3:// prefix.
        manifest: Its manifest.

    Returns:
        A directory or s3:// prefix, or the name of a published encoder: what `encoders.load` takes.

    Raises:
        InputError: It is not near the index, and is no published encoder.
    """
    from llm_retriever.encoders.table import TABLE

    store = open_store(uri)
    if not isinstance(store, LocalStore):
        beside = f"{store.uri.rsplit('/', 1)[0]}/{PUBLISHED}"
        if open_store(beside).exists(CARD_FILE):
            return beside
    else:
        for directory in _near(store.directory, CARD_FILE):
            if _says(lambda at: RetrieverCard.load(at).digest(), directory) == manifest.card:
                return str(directory)
    row = manifest.encoder.removeprefix(ROW)
    if row != manifest.encoder and row.partition("@")[0] in TABLE:
        return row
    made_by = f" (it was made by {manifest.encoder})" if manifest.encoder else ""
    raise InputError(
        f"the retriever of this index does not lie beside it{made_by}",
        file=uri,
        field="--retriever",
        hint="say where it is",
    )


def collection_of(uri: str, manifest: Manifest) -> str | None:
    """Finds the directory of the collection that an index was made of; None where it is not near it."""
    store = open_store(uri)
    if not isinstance(store, LocalStore):
        return None
    for directory in _near(store.directory, COLLECTION_FILE):
        if _says(lambda at: files.read_json(at / COLLECTION_FILE)["fingerprint"], directory) == manifest.collection:
            return str(directory)
    return None


def hybrid_of(uri: str, manifest: Manifest) -> str:
    """Finds the folder that hybrid search needs beside an index and its retriever.

    Args:
        uri: Where the index lies, a directory or s3:// prefix.
        manifest: Its manifest.

    Raises:
        InputError: It is not near the index.
    """
    store = open_store(uri)
    if not isinstance(store, LocalStore):
        beside = f"{store.uri.rsplit('/', 1)[0]}/evaluation/{hybrid.FOLDER}"
        if open_store(beside).exists(hybrid.FILE):
            return beside
    else:
        own = manifest.card, manifest.collection
        for directory in _near(store.directory, f"{hybrid.FOLDER}/{hybrid.FILE}"):
            published = _says(hybrid.Published.load, directory)
            if published is not None and (published.card, published.collection) == own:
                return str(directory)
    raise InputError(
        "what hybrid search needs does not lie beside this index",
        file=uri,
        field="--hybrid",
        hint="search without it, or evaluate again with the bm25_runs of this release's mine_negatives",
    )


def _near(index: Path, file: str) -> Iterator[Path]:
    """Directories near an index that hold a file, the nearest first."""
    parent = index.resolve().parent
    for pattern in NEARBY:
        start = parent.parent if pattern.startswith("../") else parent
        yield from sorted(path.parent for path in start.glob(f"{pattern.removeprefix('../')}/{file}"))


def _says(read: Callable[[Path], Any], directory: Path) -> Any:
    """Reads from a directory; None where it is spoilt."""
    try:
        return read(directory)
    except (InputError, KeyError, TypeError):
        return None
