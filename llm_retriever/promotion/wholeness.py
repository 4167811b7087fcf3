"""Verifies that a retriever and its index are whole, before anything is decided on them or published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever.data.training_queries import read_training_queries
from llm_retriever.errors import InputError
from llm_retriever.indexing.hybrid import published as hybrid
from llm_retriever.indexing.shard_store import LocalShards, check_shards
from llm_retriever.indexing.shards import MANIFEST_FILE, Manifest, check_index
from llm_retriever.models.card import MODEL_DIRECTORY, RetrieverCard, digest_of_weights
from llm_retriever.models.model_files import ModelFiles, check_safetensors
from llm_retriever.promotion.publication import SAME_RUN
from llm_retriever.stores.opening import LocalStore, open_store


def check_retriever(retriever: Path, listing: Mapping[str, Any]) -> RetrieverCard:
    """Raises InputError for a retriever that could not be loaded, or whose weights are not its card's.

    Args:
        retriever: Its directory.
        listing: Names and SHA-256 of all its files (`manifest_of`).

    Returns:
        Its card.

    Raises:
        InputError: It names the file that is missing or damaged.
    """
    card, model = RetrieverCard.load(retriever), retriever / MODEL_DIRECTORY
    ModelFiles(LocalStore(model), str(model)).check()
    for path in sorted(retriever.glob("*/*.safetensors")):
        check_safetensors(path, str(path.parent))
    read_training_queries(retriever)
    sums = {Path(row["name"]): row["sha256"] for row in listing["files"]}
    weights = {p.name: s for p, s in sums.items() if p.parent == Path(MODEL_DIRECTORY) and p.suffix == ".safetensors"}
    if digest_of_weights(weights) != card.weights:
        problem = "the weights are not those that the card belongs to"
        raise InputError(problem, file=retriever, field="weights", hint=SAME_RUN)
    return card


def check_whole_hybrid(evaluation: Path, card: str, collection: str) -> None:
    """Raises InputError where an evaluation's hybrid search is damaged, or of another retriever or collection.

    Args:
        evaluation: Its directory; one without the folder is fine.
        card: Digest of the retriever's card.
        collection: Fingerprint of what the index holds.

    Raises:
        InputError: It names the file that is missing or damaged.
    """
    directory = evaluation / hybrid.FOLDER
    if directory.exists():
        hybrid.Published.load(directory).check(directory, card, collection)


def check_whole_index(index: Path, card: str | None, collection: str | None = None) -> None:
    """Raises InputError for an index of another retriever or collection, or one that is not as its manifest says.

    Shards in a bucket are only looked for: every byte of them is compared when they are fetched (`shard_store.complete`).

    Args:
        index: Its directory.
        card: Digest of the retriever's card; None = of any.
        collection: Fingerprint; None = of any.

    Raises:
        InputError: It names the file that is missing or damaged.
    """
    manifest = Manifest.load(index)
    for field, expected in (("card", card), ("collection", collection)):
        if expected is not None and getattr(manifest, field) != expected:
            of = "retriever" if field == "card" else field
            raise InputError(f"is of another {of}", file=index / MANIFEST_FILE, field=field, hint=SAME_RUN)
    if manifest.shards_uri and not isinstance(open_store(manifest.shards_uri), LocalStore):
        check_shards(manifest)
        return
    check_index(manifest, index, LocalShards(manifest, index).directory)
