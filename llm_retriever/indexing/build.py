"""Builds an index: the shards of a corpus and the manifest that says what they are and whose queries they answer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llm_retriever
from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.interface import Encoder
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.files import layouts
from llm_retriever.files.drafts import is_draft
from llm_retriever.files.seal import write_seal
from llm_retriever.indexing.corpus import encode_corpus, encoding_key, of_all_copies, resolved, timings
from llm_retriever.indexing.faiss_kinds import add_faiss, announce
from llm_retriever.indexing.locate_retriever import encoder_entry
from llm_retriever.indexing.passages import read_passages, write_passages
from llm_retriever.indexing.shard_store import SENDING, Place, place_of
from llm_retriever.indexing.shards import FORMAT, MANIFEST_FILE, Manifest, PassagesFile, Shard
from llm_retriever.indexing.vector_reuse import Earlier, EarlierVectors
from llm_retriever.indexing.workers import Load
from llm_retriever.settings import IndexSettings, as_dict

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
CIRCUMSTANCES = ("processes", "shards_uri")
"""Settings that have no effect on what an index answers."""


def build_index(
    retriever: Path, collection: Path, index: Path, settings: IndexSettings, *, earlier: Earlier | None = None
) -> dict[str, Any]:
    """Encodes a collection with a retriever and writes the index.

    A run that was killed is continued at its missing shards by the next one with the same arguments. With `shards_uri`,
    the shards that `encode_part` or an earlier run left there are taken as they are, and the index names them there.

    Args:
        retriever: The output of `tune_retriever`.
        collection: The output of `prepare_corpus`.
        index: Where the index goes; appears when it is complete.
        settings: How the corpus becomes vectors.
        earlier: An index of the same retriever, from which the vectors of unchanged passages are taken.

    Returns:
        The manifest.

    Raises:
        InputError: An input is not what it should be, or a vector is not finite.
    """
    load = functools.partial(Retriever.load, retriever, precision=settings.precision)
    encoder = load()
    settings = of_all_copies(settings, encoder.card)
    return write_index(encoder, Collection.open(collection), index, settings, load=load, earlier=earlier)


def write_index(
    encoder: Encoder,
    collection: Collection,
    index: Path,
    settings: IndexSettings,
    *,
    load: Load | None = None,
    earlier: Earlier | None = None,
) -> dict[str, Any]:
    """Builds an index with an encoder that is already loaded: an un-tuned backbone, or a published encoder.

    Args:
        encoder: Encodes the passages.
        collection: Its passages keep their order.
        index: Where the index goes; appears when it is complete.
        settings: How the corpus becomes vectors.
        load: Loads the same encoder in other processes, if `settings` wants several; see `workers.Load`.
        earlier: An index of the same encoder, from which the vectors of unchanged passages are taken.

    Raises:
        InputError: As `build_index`.
    """
    layouts.INDEX.check(index)
    settings = resolved(settings, encoder)
    announce(collection.passage_count, settings.dimension, settings)
    if earlier:
        earlier.check(encoder, settings)
    key = encoding_key(encoder, collection, settings, earlier.digest() if earlier else "")
    draft = draft_directory(index, key, settings)
    draft.mkdir(parents=True, exist_ok=True)
    if not (draft / MANIFEST_FILE).exists():
        place = place_of(settings.shards_uri, key, draft)
        passages = write_passages(collection, draft)
        with earlier.at_hand() if earlier else contextlib.nullcontext() as taken:
            reused = _reused(taken.open(encoder, settings), draft, passages, collection) if taken else 0
            shards = encode_corpus(encoder, collection, place, settings, load=load, earlier=taken)
        manifest = _manifest(encoder, collection, settings, list(shards.values()), place)
        manifest = dataclasses.replace(manifest, passages=passages, reused=reused)
        files.write_json(draft / MANIFEST_FILE, add_faiss(draft, manifest, settings).as_json())
    _complete(draft, index)
    return Manifest.load(index).as_json()


def _reused(earlier: EarlierVectors, draft: Path, passages: PassagesFile, collection: Collection) -> int:
    """Counts and prints how many vectors are going to be reused."""
    count = collection.passage_count
    known = earlier.known(read_passages(draft, passages, count))
    print(f"vectors taken over: {known:,} of {count:,}", file=sys.stderr, flush=True)
    return known


def draft_directory(index: Path, key: str, settings: IndexSettings) -> Path:
    """Names the draft beside `index` after all that decides the index, so that only the same run resumes.

    Args:
        index: Where it will be.
        key: `encoding_key`.
        settings: As resolved.
    """
    settled = {name: value for name, value in as_dict(settings).items() if name != "processes"}
    return index.with_name(f".{index.name}.{files.digest([FORMAT, key, settled])[:16]}.partial")


def _manifest(
    encoder: Encoder, collection: Collection, settings: IndexSettings, shards: Sequence[Shard], place: Place
) -> Manifest:
    return Manifest(
        kind="flat",
        metric="inner_product",
        count=sum(shard.count for shard in shards),
        dimension=settings.dimension,
        dtype=settings.dtype,
        shards=tuple(shards),
        card=encoder.identity(),
        collection=collection.fingerprint,
        settings={name: value for name, value in as_dict(settings).items() if name not in CIRCUMSTANCES},
        timings=timings(shards),
        versions={
            "llm-retriever": llm_retriever.__version__,
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
        },
        shards_uri=place.uri,
        encoder=encoder_entry(encoder),
        encoder_dimension=encoder.dimension,
        normalised=encoder.normalised,
    )


def _complete(draft: Path, index: Path) -> None:
    """Makes the draft the index, and removes drafts of other settings for the same index."""
    for left in (*draft.glob("shard-*.json"), *(path for path in draft.iterdir() if is_draft(path.name))):
        left.unlink()
    shutil.rmtree(draft / SENDING, ignore_errors=True)
    write_seal(draft)
    files.put_in_place(draft, index)
    for other in index.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(index.name)}\.[0-9a-f]{{16}}\.partial", other.name):
            shutil.rmtree(other, ignore_errors=True)
