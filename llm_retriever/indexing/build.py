"""An index: the shards of a corpus and the manifest that says what they are and whose queries they answer."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import shutil
from pathlib import Path
from typing import Any

import llm_retriever
from llm_retriever import files
from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.indexing.encode import encode_corpus
from llm_retriever.indexing.shards import FORMAT, MANIFEST_FILE, Manifest, Shard
from llm_retriever.retriever import Retriever
from llm_retriever.settings import IndexSettings, as_dict, is_unset

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")


def build_index(retriever: Path, collection: Path, index: Path, settings: IndexSettings) -> dict[str, Any]:
    """Encodes a collection with a retriever and writes the index.

    A run that was killed is continued at its first missing shard by the next one with the same arguments.

    Args:
        retriever: The output of `tune_retriever`.
        collection: The output of `prepare_corpus`.
        index: Where the index goes; appears when it is complete.
        settings: How the corpus becomes vectors.

    Returns:
        The manifest.

    Raises:
        InputError: An input is not what it should be, or a vector is not finite.
    """
    corpus = Collection.open(collection)
    return write_index(Retriever.load(retriever, precision=settings.precision), corpus, index, settings)


def write_index(retriever: Retriever, collection: Collection, index: Path, settings: IndexSettings) -> dict[str, Any]:
    """`build_index` with a retriever that is already loaded, as an un-tuned backbone is."""
    if not collection.passage_count:
        raise InputError("there are no passages", file=collection.directory)
    settings = resolved(settings, retriever)
    draft = draft_directory(index, retriever, collection, settings)
    draft.mkdir(parents=True, exist_ok=True)
    if not (draft / MANIFEST_FILE).exists():
        shards = encode_corpus(retriever, collection, draft, settings)
        manifest = _manifest(retriever, collection, settings, shards)
        files.write_json(draft / MANIFEST_FILE, manifest.as_json())
    _complete(draft, index)
    return Manifest.load(index).as_json()


def resolved(settings: IndexSettings, retriever: Retriever) -> IndexSettings:
    """The settings with the card's passage length and the retriever's arithmetic in place of what was left open."""
    length = retriever.card.passage_length if is_unset(settings.passage_length) else settings.passage_length
    return dataclasses.replace(settings, passage_length=length, precision=retriever.precision)


def draft_directory(index: Path, retriever: Retriever, collection: Collection, settings: IndexSettings) -> Path:
    """Where the shards grow, beside `index`; named after all that decides them, so that only the same run resumes."""
    key = files.digest([FORMAT, retriever.card.digest(), collection.fingerprint, as_dict(settings)])
    return index.with_name(f".{index.name}.{key[:16]}.partial")


def _manifest(
    retriever: Retriever, collection: Collection, settings: IndexSettings, shards: tuple[Shard, ...]
) -> Manifest:
    return Manifest(
        kind="flat",
        metric=retriever.card.score,
        count=sum(shard.count for shard in shards),
        dimension=retriever.dimension,
        dtype=settings.dtype,
        shards=shards,
        card=retriever.card.digest(),
        collection=collection.fingerprint,
        settings=as_dict(settings),
        timings=_timings(shards),
        versions={
            "llm-retriever": llm_retriever.__version__,
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    )


def _timings(shards: tuple[Shard, ...]) -> dict[str, float]:
    seconds = max(sum(shard.seconds for shard in shards), 1e-3)
    tokens, slots = sum(shard.tokens for shard in shards), sum(shard.slots for shard in shards)
    return {
        "seconds": round(seconds, 3),
        "passages_per_second": round(sum(shard.count for shard in shards) / seconds, 1),
        "tokens_per_second": round(tokens / seconds, 1),
        "padding_share": round(1 - tokens / slots, 4),
    }


def _complete(draft: Path, index: Path) -> None:
    """Makes the draft the index; drafts of other settings for the same index are of no more use."""
    for record in draft.glob("shard-*.json"):
        record.unlink()
    if index.is_dir():
        shutil.rmtree(index)
    os.replace(draft, index)
    for other in index.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(index.name)}\.[0-9a-f]{{16}}\.partial", other.name):
            shutil.rmtree(other, ignore_errors=True)
