"""The systems that are evaluated: the tuned retriever, BM25 from its runs, and the un-tuned backbone."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.collection import Collection, PassageLookup
from llm_retriever.errors import InputError
from llm_retriever.evaluation.runs import RUNS_MANIFEST, Run, read_run
from llm_retriever.indexing.build import write_index
from llm_retriever.indexing.search import Index
from llm_retriever.progress import Progress
from llm_retriever.retriever import Retriever
from llm_retriever.settings import IndexSettings

QUERIES_AT_ONCE = 4096  # each search reads the whole index once


@dataclass
class DenseSystem:
    """A retriever and the index that it filled.

    Args:
        retriever: Encodes the queries.
        index: Holds the passages.
        passages: Tells whether a query's id is that of a passage.
        query_length: Tokens of a query, prompt included; None = as in training.

    Attributes:
        queries: Queries searched so far.
        encoding_seconds: Wall-clock time spent on encoding them.
        search_seconds: Wall-clock time spent on searching them.
    """

    retriever: Retriever
    index: Index
    passages: PassageLookup
    query_length: int | None = None
    queries: int = field(default=0, init=False)
    encoding_seconds: float = field(default=0.0, init=False)
    search_seconds: float = field(default=0.0, init=False)

    def run(self, queries: Mapping[str, str], depth: int) -> Run:
        """Searches `depth` passages for every query.

        A passage whose id is the query's own is left out (BEIR's rule for corpora that hold their queries).

        Args:
            queries: Text by query id.
            depth: Passages per query.

        Returns:
            Score by passage id, best first, by query id.
        """
        names, texts = list(queries), list(queries.values())
        spare = 1 if any(name in self.passages for name in names) else 0
        started = time.monotonic()
        vectors = self.retriever.encode_queries(texts, length=self.query_length, progress=True)
        self.encoding_seconds += time.monotonic() - started
        self.queries += len(names)
        run: Run = {}
        with Progress("search", len(names), "queries") as progress:
            for start in range(0, len(names), QUERIES_AT_ONCE):
                part = names[start : start + QUERIES_AT_ONCE]
                started = time.monotonic()
                scores, ids = self.index.search(vectors[start : start + len(part)], depth + spare)
                self.search_seconds += time.monotonic() - started
                for name, found, values in zip(part, ids, scores, strict=True):
                    run[name] = dict(zip(found, values.tolist(), strict=True))
                progress.update(len(part))
        return without_own_passage(run, depth)


def without_own_passage(run: Run, depth: int) -> Run:
    """The first `depth` passages of every query, by score and descending id, without the passage of the query's own id."""
    kept: Run = {}
    for query, ranking in run.items():
        ranked = sorted(((score, passage) for passage, score in ranking.items() if passage != query), reverse=True)
        kept[query] = {passage: score for score, passage in ranked[:depth]}
    return kept


class BM25Runs:
    """The BM25 runs that `mine_negatives` made.

    Args:
        directory: With `<split>.trec` files and `runs.json`.
        collection: The collection that they must be of.

    Attributes:
        parameters: Of the search.
        depth: Passages that were searched per query; without a limit where nobody says.

    Raises:
        InputError: The directory holds no runs, or those of another collection.
    """

    def __init__(self, directory: Path, collection: Collection) -> None:
        manifest = files.read_json(directory / RUNS_MANIFEST, mend="give the bm25_runs of mine_negatives")
        if not isinstance(manifest, dict) or not isinstance(manifest.get("parameters", {}), dict):
            raise InputError("not a manifest of runs", file=directory / RUNS_MANIFEST)
        check_fingerprint(manifest.get("collection"), collection, directory / RUNS_MANIFEST)
        self.directory = directory
        self.parameters: dict[str, Any] = manifest.get("parameters", {})
        self.depth = int(self.parameters.get("depth", sys.maxsize))

    def run(self, split: str, depth: int) -> Run | None:
        """The run of a split, as `DenseSystem.run` returns it; None where there is none.

        Raises:
            InputError: The run is empty or spoilt.
        """
        path = self.directory / f"{split}.trec"
        return without_own_passage(read_run(path), depth) if path.exists() else None


def check_fingerprint(found: Any, collection: Collection, file: Path) -> None:
    """Raises InputError when `found`, in `file`, is not the fingerprint of `collection`."""
    if found != collection.fingerprint:
        raise InputError(
            f"made from another collection ({str(found)[:12]} instead of {collection.fingerprint[:12]})",
            file=file,
            field="collection",
            mend="make it anew from this collection",
        )


@contextlib.contextmanager
def untuned_backbone(
    backbone: Path, tuned: DenseSystem, collection: Collection, precision: str
) -> Iterator[DenseSystem]:
    """Yields the backbone before any training, worded, read out and indexed as the tuned system is.

    Args:
        backbone: Directory of the backbone.
        tuned: The tuned system.
        collection: The corpus, which is encoded into a temporary directory.
        precision: As for the retriever.
    """
    retriever = Retriever.on_backbone(backbone, tuned.retriever.card, precision=precision)
    settings = IndexSettings(**tuned.index.manifest.settings)
    with tempfile.TemporaryDirectory(prefix="untuned-") as scratch:
        directory = Path(scratch) / "index"
        write_index(retriever, collection, directory, settings)
        yield DenseSystem(retriever, Index.open(directory, retriever.card), tuned.passages, tuned.query_length)
