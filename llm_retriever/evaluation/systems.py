"""The systems that are evaluated: dense ones, which search an index, and lexical ones, which have runs."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from llm_retriever import files
from llm_retriever.bm25.sparse import LUCENE_FILE
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.interface import Encoder
from llm_retriever.errors import InputError
from llm_retriever.indexing.build import write_index
from llm_retriever.indexing.hybrid.published import listed_files
from llm_retriever.indexing.index import Index
from llm_retriever.metrics.runs import RUNS_MANIFEST, Run, read_run
from llm_retriever.progress import Progress
from llm_retriever.settings import IndexSettings
from llm_retriever.stores.interface import is_safe

BM25 = "BM25"
QUERIES_AT_ONCE = 4096  # each search reads the whole index once


@dataclass
class DenseSystem:
    """An encoder and the index that it filled.

    Args:
        encoder: Encodes the queries.
        index: Holds the passages.
        query_length: Tokens of a query, prompt included; None = as in training.

    Attributes:
        weights: Number of the model's weights that every token passes: all but the table of input embeddings; None = not known.
        device: Where the encoder computes.
        queries: Queries searched so far.
        encoding_seconds: Wall-clock time spent on encoding them.
        search_seconds: Wall-clock time spent on searching them.
    """

    encoder: Encoder
    index: Index
    query_length: int | None = None
    weights: int | None = field(init=False)
    device: str = field(init=False)
    queries: int = field(default=0, init=False)
    encoding_seconds: float = field(default=0.0, init=False)
    search_seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        # The interface of encoders says neither.
        model = getattr(self.encoder, "model", None)
        self.weights, self.device = (None, "cpu") if model is None else (_weights(model), str(model.device))

    def release(self) -> None:
        """Frees the encoder, because the next system needs its memory; measurements stay."""
        del self.encoder

    def run(self, queries: Mapping[str, str], depth: int) -> Run:
        """Searches `depth` passages for every query.

        Args:
            queries: Text by query id.
            depth: Passages per query.

        Returns:
            Score by passage id, best first, by query id.
        """
        names, texts = list(queries), list(queries.values())
        started = time.monotonic()
        vectors = self.encoder.encode_queries(texts, length=self.query_length, progress=True)
        self.encoding_seconds += time.monotonic() - started
        self.queries += len(names)
        run: Run = {}
        with Progress("search", len(names), "queries") as progress:
            for start in range(0, len(names), QUERIES_AT_ONCE):
                part = names[start : start + QUERIES_AT_ONCE]
                started = time.monotonic()
                scores, ids = self.index.search(vectors[start : start + len(part)], depth)
                self.search_seconds += time.monotonic() - started
                for name, passages, values in zip(part, ids, scores, strict=True):
                    run[name] = dict(zip(passages, values.tolist(), strict=True))
                progress.update(len(part))
        return run


def _weights(model: Any) -> int:
    table = model.get_input_embeddings()
    return sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in table.parameters())


def without_own_passages(run: Run, depth: int, own: Set[str] = frozenset()) -> Run:
    """Keeps the first `depth` passages of every query, by score and descending id.

    Args:
        run: Score by passage id, by query id.
        depth: Passages per query.
        own: Queries without the passage of the same id (`Collection.own_passages`).
    """
    kept: Run = {}
    for query, ranking in run.items():
        left_out = query if query in own else None
        ranked = sorted(((score, passage) for passage, score in ranking.items() if passage != left_out), reverse=True)
        kept[query] = {passage: score for score, passage in ranked[:depth]}
    return kept


class SparseSystem(NamedTuple):
    """A lexical system that `mine_negatives` made runs of.

    Attributes:
        files: File name of its run by split.
    """

    description: str
    parameters: dict[str, Any]
    files: dict[str, str]

    @property
    def depth(self) -> int:
        """Passages that were searched per query; unlimited where the manifest does not say."""
        return int(self.parameters.get("depth", sys.maxsize))


class _Parameters(TypedDict):
    depth: NotRequired[Annotated[int, Field(strict=True, ge=0)]]


class _Manifest(TypedDict):
    """The fields of `runs.json` that readers rely on."""

    parameters: NotRequired[_Parameters]
    systems: NotRequired[dict[str, Any]]


_MANIFEST = TypeAdapter(_Manifest)


class BM25Runs:
    """The BM25 runs that `mine_negatives` made, and those of other lexical systems.

    Args:
        directory: Directory with `<split>.trec` files and `runs.json`.
        collection: The collection that they must be of.

    Attributes:
        parameters: Parameters of the BM25 search.
        depth: Passages that BM25 searched per query; without a limit where nobody says.
        others: Other lexical systems by name.
        lucene: Names, sizes and SHA-256 of the files of Lucene's index, in `lucene/`; [] where there is none.

    Raises:
        InputError: The directory holds no runs, or those of another collection.
    """

    def __init__(self, directory: Path, collection: Collection) -> None:
        manifest = files.read_json(directory / RUNS_MANIFEST, hint="give the bm25_runs of mine_negatives")
        if not isinstance(manifest, dict):
            raise InputError("not a manifest of runs", file=directory / RUNS_MANIFEST)
        files.checked(_MANIFEST, manifest, directory / RUNS_MANIFEST, hint="mine the negatives again")
        check_fingerprint(manifest.get("collection"), collection, directory / RUNS_MANIFEST)
        self.directory = directory
        parameters = manifest.get("parameters", {})
        description = "lexical search" + _listed(parameters)
        self._bm25 = SparseSystem(description, parameters, {name: f"{name}.trec" for name in collection.splits})
        self.parameters: dict[str, Any] = parameters
        self.depth = self._bm25.depth
        self.lucene = listed_files(directory / LUCENE_FILE)
        self.others = {name: self._other(name, facts) for name, facts in manifest.get("systems", {}).items()}

    def _other(self, name: str, facts: Any) -> SparseSystem:
        try:
            system = SparseSystem(str(facts["description"]), dict(facts["parameters"]), dict(facts["files"]))
            TypeAdapter(_Parameters).validate_python(system.parameters)
        except (KeyError, TypeError, ValueError):
            system = None
        if system is None or not all(isinstance(file, str) and is_safe(file) for file in system.files.values()):
            raise InputError(
                f"does not say what the system {name!r} is", file=self.directory / RUNS_MANIFEST, field="systems"
            )
        return system

    @property
    def systems(self) -> dict[str, SparseSystem]:
        """All lexical systems, BM25 first."""
        return {BM25: self._bm25, **self.others}

    def file(self, split: str, system: str = BM25) -> Path | None:
        """File of a run; None where there is none."""
        name = self.systems[system].files.get(split)
        path = self.directory / name if name else None
        return path if path is not None and path.exists() else None

    def run(self, split: str, depth: int, system: str = BM25) -> Run | None:
        """Reads the first `depth` passages of a split's queries, as `DenseSystem.run` returns them; None where there is no run.

        Raises:
            InputError: The run is spoilt.
        """
        path = self.file(split, system)
        return None if path is None else without_own_passages(read_run(path), depth)


def _listed(values: Mapping[str, Any]) -> str:
    return " with " + ", ".join(f"{name} {value}" for name, value in values.items()) if values else ""


def check_fingerprint(fingerprint: Any, collection: Collection, file: Path) -> None:
    """Raises InputError unless `fingerprint`, read from `file`, is that of `collection`."""
    if fingerprint != collection.fingerprint:
        raise InputError(
            f"made from another collection ({str(fingerprint)[:12]} instead of {collection.fingerprint[:12]})",
            file=file,
            field="collection",
            hint="make it anew from this collection",
        )


@contextlib.contextmanager
def encoded(
    encoder: Encoder, collection: Collection, settings: IndexSettings, query_length: int | None
) -> Iterator[DenseSystem]:
    """Encodes a collection into a temporary directory and yields the system that searches it.

    Args:
        encoder: Encoder of passages and queries.
        collection: The corpus.
        settings: How the corpus becomes vectors.
        query_length: Tokens of a query, prompt included; None = as the encoder says.
    """
    with tempfile.TemporaryDirectory(prefix="encoded-") as scratch:
        directory = Path(scratch) / "index"
        write_index(encoder, collection, directory, settings)
        yield DenseSystem(encoder, Index.open(directory, encoder), query_length)
