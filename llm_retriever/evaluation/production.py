"""The retriever in production as one more system, evaluated on the collection of today.

It is evaluated in an index of this collection that is made as its published one was: same kind, arithmetic, lengths and stored
type. Vectors of passages whose title and text the published index has are taken over, only the others are encoded (see
`llm_retriever.indexing.vector_reuse`). That index is an output of the step, so that a retriever that stays in production can be
published again with it; where only queries or judgments have changed, there is nothing to publish. A published index of this
very collection is searched as it is.

Queries that the version in production was trained on and the new retriever was not favour the old one. A split that is drawn
from the training queries has such where the draw has changed since; they are counted and told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_queries import favour, read_training_queries, were_trained_on
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.evaluation import provenance
from llm_retriever.evaluation.baselines import fitting
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.evaluation.hybrid import fuse, fusion_as_text
from llm_retriever.evaluation.systems import DenseSystem
from llm_retriever.indexing.build import write_index
from llm_retriever.indexing.hybrid.published import published_in
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import MANIFEST_FILE, Manifest
from llm_retriever.indexing.vector_reuse import Earlier
from llm_retriever.metrics.conventions import PRODUCTION, PRODUCTION_HYBRID, REFRESHED_FILE
from llm_retriever.models.card import CARD_FILE, RetrieverCard
from llm_retriever.precision import resolve_precision
from llm_retriever.settings import IndexSettings, is_unset
from llm_retriever.stores.opening import Store, fetched, open_store
from llm_retriever.stores.registry import VERSION_FILE

FIELD = "production_uri"
RETRIEVER_FOLDER, INDEX_FOLDER = "retriever", "index"
HINT = "give the URI of a version, REGISTRY/versions/NAME, as fingerprint_sources does"


@dataclass(frozen=True)
class Refreshed:
    """`refreshed.json`: how the index of the version in production was updated to the new collection.

    Attributes:
        production_uri: URI of the version; "" where there is none.
        version: Its name.
        encoded: Passages that were encoded.
        reused: Passages whose vectors the published index had.
        index: Whether an index lies beside this file; not so where the published one holds the same passages.
    """

    production_uri: str = ""
    version: str = ""
    encoded: int = 0
    reused: int = 0
    index: bool = False

    def save(self, directory: Path) -> None:
        """Writes the file into the output `refreshed`."""
        files.write_json(directory / REFRESHED_FILE, dataclasses.asdict(self))


@dataclass(frozen=True)
class Added:
    """The result of adding the version in production to a bench; empty where there is none.

    Attributes:
        refreshed: How its index was updated to the new collection.
        seconds: Wall-clock seconds of it all; None where there is no version.
        trained_on: How many queries it alone was trained on, by split, where any; None = the version does not say.
    """

    refreshed: Refreshed = field(default_factory=Refreshed)
    seconds: float | None = None
    trained_on: dict[str, int] | None = None

    def content(self) -> dict[str, Any]:
        """Builds the part of `evaluation.json`; {} where there is no version in production."""
        refreshed = self.refreshed
        if not refreshed.production_uri:
            return {}
        counts = {"encoded": refreshed.encoded, "reused": refreshed.reused, "trained_on": self.trained_on}
        return {PRODUCTION: {"uri": refreshed.production_uri, "version": refreshed.version, **counts}}


class Production:
    """A published version whose retriever and index belong together.

    Args:
        uri: Directory or s3:// prefix with `version.json`, `retriever/` and `index/`.
        shards_uri: Directory or s3:// prefix that shards of its refreshed index go to; "" = beside its manifest.

    Attributes:
        uri: Without a slash at its end.
        version: Its name.
        card: Card of its retriever.
        manifest: Manifest of its index.
        hybrid: How it fuses with BM25; None where it does not say.

    Raises:
        InputError: There is no complete version, its retriever and index do not belong together, or the place of shards
            cannot be one.
    """

    def __init__(self, uri: str, shards_uri: str = "") -> None:
        self.uri, self._shards_uri = uri.rstrip("/"), shards_uri
        if shards_uri:
            open_store(shards_uri)
        store = open_store(self.uri)
        needed = (VERSION_FILE, f"{RETRIEVER_FOLDER}/{CARD_FILE}", f"{INDEX_FOLDER}/{MANIFEST_FILE}")
        missing = [name for name in needed if not store.exists(name)]
        if missing:
            raise InputError(f"not a published version, there is no {missing[0]}", file=uri, field=FIELD, hint=HINT)
        self.version = _name(store)
        with tempfile.TemporaryDirectory(prefix="version-") as scratch:
            for name in needed[1:]:
                files.write_text(Path(scratch) / name, store.read(name).decode())
            self.card = RetrieverCard.load(Path(scratch) / RETRIEVER_FOLDER)
            self.manifest = Manifest.load(Path(scratch) / INDEX_FOLDER)
        if self.manifest.card != self.card.digest():
            raise InputError("its index was made by another retriever", file=uri, field=FIELD, hint=HINT)
        self.hybrid = published_in(self.uri)

    def add(self, bench: Bench, refreshed: Path, new: Path) -> Added:
        """Evaluates the version on a bench, and notes how.

        Args:
            bench: Bench with the collection of today.
            refreshed: Directory of the output, which gets `index/` where the published one holds other passages.
            new: Directory of the new retriever, whose training queries favour nobody.

        Returns:
            What was encoded and reused, how long it took, and how many of the queries the version was trained on.
        """
        started = time.monotonic()
        with fetched(f"{self.uri}/{RETRIEVER_FOLDER}") as retriever:
            known = self._trained_on(retriever, new, bench)
            with self._searchable(retriever, bench, refreshed) as (encoder, index):
                length_setting = bench.settings.query_length
                length, _ = fitting(encoder, None if is_unset(length_setting) else length_setting, None)
                system = DenseSystem(encoder, index, length)
                description = f"the retriever in production, version {self.version} {provenance.made_of(self.card)}"
                bench.add_dense(PRODUCTION, system, description=description, card=self.card.digest())
                outcome = self._outcome(index.manifest)
        if not outcome.index:
            shutil.rmtree(refreshed / INDEX_FOLDER, ignore_errors=True)
        bench.notes.append(self._note(outcome))
        return Added(outcome, time.monotonic() - started, known)

    def add_hybrid(self, bench: Bench) -> None:
        """Adds its hybrid search, by its own fusion, to the splits where it and BM25 were evaluated."""
        if self.hybrid is not None:
            description = f"the version in production and BM25 as one ranking: {fusion_as_text(self.hybrid.fusion)}"
            fuse(bench, self.hybrid.fusion, PRODUCTION, PRODUCTION_HYBRID, description)

    def _trained_on(self, retriever: Path, new: Path, bench: Bench) -> dict[str, int] | None:
        """Counts queries that it was trained on and the new retriever was not, by split, and notes them."""
        theirs, ours = read_training_queries(retriever), read_training_queries(new)
        if theirs is None:
            bench.notes.append(
                f"The version in production, {self.version}, does not say which queries it was trained on. Queries of this "
                "evaluation that are among them favour it."
            )
            return None
        counts: dict[str, int] = {}
        for split in bench.splits:
            texts = list(split.queries.values())
            alone = were_trained_on(theirs, texts)
            alone &= True if ours is None else ~were_trained_on(ours, texts)
            if count := int(alone.sum()):
                counts[split.name] = count
                split.notes.append(favour(split.name, count, len(texts)))
        return counts

    @contextlib.contextmanager
    def _searchable(self, retriever: Path, bench: Bench, refreshed: Path) -> Iterator[tuple[Retriever, Index]]:
        """Yields the retriever and an index of the collection: the published one, or one made of it."""
        encoder: Retriever | None = None
        with fetched(f"{self.uri}/{INDEX_FOLDER}") as published:
            if self.manifest.collection != bench.corpus.fingerprint:
                encoder = self._refresh(published, retriever, bench.corpus, refreshed / INDEX_FOLDER)
                published = refreshed / INDEX_FOLDER
                if encoder.precision != resolve_precision(bench.settings.precision):
                    encoder = None  # Gone before it is loaded in the other arithmetic.
            encoder = encoder or Retriever.load(retriever, precision=bench.settings.precision)
            yield encoder, Index.open(published, encoder, verify=True)

    def _refresh(self, published: Path, retriever: Path, corpus: Collection, target: Path) -> Retriever:
        """Makes the index of the new collection, on all GPUs; vectors must be made in the arithmetic of the published ones."""
        settings = settings_of(self.manifest, self._shards_uri)
        load = functools.partial(Retriever.load, retriever, precision=settings.precision)
        encoder, earlier = load(), Earlier(published) if self.manifest.passages else None
        write_index(encoder, corpus, target, settings, load=load, earlier=earlier)
        return encoder

    def _outcome(self, searched: Manifest) -> Refreshed:
        is_new = _held(searched) != _held(self.manifest)
        reused = searched.reused if is_new else searched.count
        return Refreshed(self.uri, self.version, searched.count - reused, reused, is_new)

    def _note(self, new: Refreshed) -> str:
        if not new.index:
            return f"The version in production, {self.version}, was searched in its published index, which holds this corpus."
        how = f"of {new.encoded + new.reused:,} vectors, {new.reused:,} were taken over and {new.encoded:,} made anew"
        if self.manifest.passages is None:
            how = f"all {new.encoded:,} passages were encoded, because its published index does not say which passages it holds"
        return f"The index of the version in production, {self.version}, was brought to this collection: {how}."


def _held(manifest: Manifest) -> tuple[Any, ...]:
    """Identifies the passages that an index holds, with their ids and order."""
    return manifest.passages, manifest.count, [shard.ids_sha256 for shard in manifest.shards]


def _name(store: Store) -> str:
    try:
        name = str(json.loads(store.read(VERSION_FILE))["name"])
    except (ValueError, KeyError, TypeError):
        name = ""
    if not name:
        hint = "restore that version"
        raise InputError("does not name a version", file=store.uri_of(VERSION_FILE), field="name", hint=hint)
    return name


def settings_of(manifest: Manifest, shards_uri: str = "") -> IndexSettings:
    """Settings to build an index like another one of another collection: its own, but for what depends on machine and place.

    Args:
        manifest: Manifest of the index.
        shards_uri: Where the shards of the other one go; "" = beside its manifest.
    """
    known = {field.name for field in dataclasses.fields(IndexSettings)}
    own = {name: value for name, value in manifest.settings.items() if name in known}
    # A limit of memory was that of another pod.
    return IndexSettings(**own | {"processes": 0, "memory_gib": 0.0, "shards_uri": shards_uri})
