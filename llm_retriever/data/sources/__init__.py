"""Sources of collections: every one yields the same rows, whatever its layout.

A source is opened with `opened_source`; the layout of a directory is recognised from its file names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.rows import Row
from llm_retriever.errors import InputError
from llm_retriever.stores.uris import SOURCES, check_scheme

FORMATS = ("beir", "msmarco", "tevatron", "flagembedding", "triples")
LICENCE_UNKNOWN = "not stated by the source"


@dataclass(frozen=True)
class Source:
    """A source, ready to be read.

    Attributes:
        rows: Yields the passages, queries and judgments, in any order; unusable lines go to the `BadLines` given.
        shown: What its owner calls it.
        description: For the manifest: uri, format and what else tells the source apart (revision, versions).
        licence: What the source says about its terms.
        directory: Where its files lie now; None where it has none.
    """

    rows: Callable[[BadLines], Iterator[Row]]
    shown: str
    description: dict[str, Any] = field(default_factory=dict)
    licence: str = LICENCE_UNKNOWN
    directory: Path | None = None


@contextlib.contextmanager
def opened_source(uri: str, format: str = "auto") -> Iterator[Source]:
    """Opens a directory, an `s3://` prefix, an `hf://datasets/…` repository or a `demo:` collection.

    What was downloaded is removed when the block ends.

    Raises:
        InputError: The source does not exist, cannot be reached, or its layout is not known.
    """
    check_scheme(uri, SOURCES, field="uri")
    if uri.startswith("demo:"):
        yield _demo(uri)
    elif uri.startswith("hf://"):
        from llm_retriever.data.sources.hub import downloaded

        with downloaded(uri) as (directory, description, licence):
            yield _directory_source(directory, uri, format, description, licence)
    elif uri.startswith("s3://"):
        from llm_retriever.stores.opening import fetched

        with fetched(uri) as directory:
            yield _directory_source(Path(directory), uri, format, {"uri": uri})
    else:
        yield _directory_source(Path(uri), uri, format, {"uri": uri})


def _demo(uri: str) -> Source:
    from llm_retriever.data.sources import python_docs

    if uri != python_docs.URI:
        raise InputError(f"there is no demo {uri!r}", field="uri", hint=f"use {python_docs.URI}")
    return Source(
        python_docs.rows, uri, {"uri": uri, "format": "demo", "versions": python_docs.versions()}, python_docs.LICENCE
    )


def _directory_source(
    directory: Path,
    shown: str,
    format: str,
    description: dict[str, Any],
    licence: str = LICENCE_UNKNOWN,
) -> Source:
    if not directory.is_dir():
        problem = "is a file, not a directory" if directory.exists() else "no such directory"
        hint = "give a directory, s3://bucket/prefix, hf://datasets/OWNER/NAME or demo:python-docs"
        raise InputError(problem, file=shown, field="uri", hint=hint)
    shown = shown.rstrip("/")
    name = recognised(directory, shown) if format == "auto" else format
    reader = _readers()[name](directory, shown)
    return Source(reader.rows, shown, {**description, "format": name}, licence, directory)


def recognised(directory: Path, shown: str) -> str:
    """Recognises a directory's layout, and returns its name.

    Raises:
        InputError: It has none of them, or a file at fault hides which.
    """
    for name, reader in _readers().items():
        if reader.recognises(directory):
            return name
    raise InputError(
        "the layout is none of those known",
        file=shown,
        field="format",
        hint="give a directory in one of the layouts of docs/data-formats.md: " + ", ".join(FORMATS),
    )


def _readers() -> dict[str, Any]:
    from llm_retriever.data.sources.beir import BeirDirectory
    from llm_retriever.data.sources.flagembedding import FlagEmbeddingDirectory
    from llm_retriever.data.sources.msmarco import MsMarcoDirectory
    from llm_retriever.data.sources.tevatron import TevatronDirectory
    from llm_retriever.data.sources.triples import TriplesDirectory

    readers = (BeirDirectory, MsMarcoDirectory, TevatronDirectory, FlagEmbeddingDirectory, TriplesDirectory)
    return dict(zip(FORMATS, readers, strict=True))
