"""Publishes hybrid search beside a retriever and its index: the fusion, and Lucene's index of the same collection.

    hybrid/hybrid.json    the fusion, how deep both systems were searched, BM25's parameters, checksums of lucene/
    hybrid/lucene/        as mine_negatives left it

It lies in an evaluation, and so in a published version: `versions/NAME/evaluation/hybrid`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from llm_retriever import files
from llm_retriever.bm25.sparse import LUCENE_FOLDER
from llm_retriever.data.scripts import ENGLISH
from llm_retriever.errors import InputError
from llm_retriever.metrics.fusion import Fusion
from llm_retriever.settings.mining import Language
from llm_retriever.stores.interface import verify
from llm_retriever.stores.opening import open_store

FOLDER, FILE = "hybrid", "hybrid.json"
FORMAT = 1
HINT = "evaluate again, or name another version"


@dataclasses.dataclass(frozen=True)
class Published:
    """The content of `hybrid.json`.

    Attributes:
        fusion: Fusion of the two rankings.
        card: Digest of the card of the retriever that it was chosen for.
        collection: Fingerprint of what Lucene's index holds.
        depth: Passages of either system that are fused.
        query_length: Tokens of a query, prompt included; None = as in training.
        bm25: Its parameters `k1` and `b`.
        bm25_depth: Passages that BM25 searches; of them the first `depth` by score, then by id, count.
        files: Names, sizes and SHA-256 of Lucene's files.
        language: How Lucene's index was analysed, and queries are.
    """

    fusion: Fusion
    card: str
    collection: str
    depth: int
    query_length: int | None
    bm25: dict[str, float]
    bm25_depth: int
    files: list[dict[str, Any]]
    language: str = ENGLISH

    def write(self, directory: Path, lucene: Path) -> None:
        """Writes the folder; Lucene's files are hard links or copies.

        Args:
            directory: To make.
            lucene: The folder with Lucene's index, whose files were checked.
        """
        directory.mkdir(parents=True)
        files.link_tree(lucene, directory / LUCENE_FOLDER)
        content = {"format": FORMAT, **dataclasses.asdict(self), **self.fusion.as_json()}
        files.write_json(directory / FILE, content)

    @classmethod
    def load(cls, directory: Path) -> Published:
        """Reads a folder.

        Raises:
            InputError: It is not one.
        """
        return _parsed(files.read_json(directory / FILE, hint=HINT), directory / FILE)

    def check(self, directory: Path, card: str, collection: str) -> None:
        """Compares the folder's content with its files, and with the retriever and index that it is used with.

        Args:
            directory: The folder.
            card: Digest of the retriever's card.
            collection: Fingerprint of what the index holds.

        Raises:
            InputError: A file is missing or has other bytes, or it belongs to another retriever or collection.
        """
        for field, expected in (("card", card), ("collection", collection)):
            if getattr(self, field) != expected:
                of = "retriever" if field == "card" else field
                raise InputError(f"is of another {of}", file=directory / FILE, field=field, hint=HINT)
        check_lucene(directory / LUCENE_FOLDER, self.files)


def check_lucene(directory: Path, listed: list[dict[str, Any]]) -> None:
    """Compares Lucene's index with a list of names and SHA-256.

    Raises:
        InputError: A file is missing or has other bytes.
    """
    verify(directory, {"files": listed}, str(directory))


class _File(TypedDict):
    name: str
    sha256: str


class _Listing(TypedDict):
    """What readers rely on of a manifest of Lucene's files."""

    files: list[_File]


_LISTING = TypeAdapter(_Listing)


def listed_files(file: Path) -> list[dict[str, Any]]:
    """Reads names, sizes and SHA-256 of Lucene's files, as `mine_negatives` lists them; [] where there is no such list.

    Raises:
        InputError: The list is damaged.
    """
    if not file.exists():
        return []
    content = files.read_json(file, hint="mine the negatives again")
    files.checked(_LISTING, content, file, hint="mine the negatives again")
    return content["files"]  # type: ignore[no-any-return]


def _parsed(content: Any, file: Path | str) -> Published:
    try:
        names = [field.name for field in dataclasses.fields(Published) if field.name != "fusion"]
        weight = Fusion.weight if content["weight"] is None else float(content["weight"])
        published = Published(Fusion(content["fusion"], weight), **{name: content[name] for name in names})
        known = published.language in get_args(Language)
        _LISTING.validate_python(content)
        k1_and_b = float(published.bm25["k1"]), float(published.bm25["b"])
        usable = (
            known
            and published.fusion.kind in ("convex", "rrf")
            and 0 <= weight <= 1
            and min(published.depth, published.bm25_depth, published.query_length or 1) > 0
        )
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable or content.get("format") != FORMAT:
        raise InputError("does not say how to search", file=file, hint=HINT)
    return dataclasses.replace(published, bm25=dict(zip(("k1", "b"), k1_and_b, strict=True)))


def published_in(version: str) -> Published | None:
    """Reads a published version's hybrid search; None where it has none.

    Args:
        version: Its URI, a directory or s3:// prefix.

    Raises:
        InputError: What it says cannot be used.
    """
    store, key = open_store(version), f"evaluation/{FOLDER}/{FILE}"
    if not store.exists(key):
        return None
    try:
        content = json.loads(store.read(key))
    except ValueError:
        content = None
    return _parsed(content, store.uri_of(key))
