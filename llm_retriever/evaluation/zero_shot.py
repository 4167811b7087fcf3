"""Zero-shot collections: evaluates a retriever on collections that it was not trained on, as BEIR asks.

All collections are prepared in scratch space before anything is encoded, so that what is wrong with one shows early. Then
each is encoded and searched by the retriever, and, when that is no longer in memory, by the baselines. Its passages are
neither merged nor thinned out, so that the figures compare with published ones; only those with neither title nor text, of
which FiQA has some, are left out. BM25 stands beside the retriever with BEIR's settings where it can run. A directory of
several collections, as CQADupStack is one of twelve forums, counts as one, and so do several that are named ``NAME/PART``:
its figures are the unweighted mean of its parts. The un-tuned backbone is not evaluated on them. Differences are tested on
the primary metric of the evaluation; nDCG@10 is measured in any case.

Source: Thakur et al., *BEIR*, NeurIPS 2021: title and text of a passage in one field, a query that is itself a passage left
out of its ranking (`CorpusSettings.own_passages`), nDCG@10 on the split `test`, unweighted mean over the collections.
"""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_retriever.bm25.java import find_java
from llm_retriever.bm25.runs import BY_SCRIPT, search_parameters
from llm_retriever.bm25.similarities import bm25
from llm_retriever.bm25.sparse import SparseIndex
from llm_retriever.data import preparation
from llm_retriever.data.collection import BAD_LINES_FILE, Collection
from llm_retriever.data.sources import recognised
from llm_retriever.errors import InputError
from llm_retriever.evaluation.baselines import Task, fitting, inherited
from llm_retriever.evaluation.evaluation_run import Bench, split_name
from llm_retriever.evaluation.named_list import named
from llm_retriever.evaluation.splits import ZERO_SHOT
from llm_retriever.evaluation.systems import DenseSystem, encoded
from llm_retriever.metrics.conventions import BM25, RETRIEVER, TRAINING_SPLIT
from llm_retriever.metrics.measures import mean_of_systems
from llm_retriever.reporting.report import SplitExamples
from llm_retriever.settings import CorpusSettings, EvaluationSettings, IndexSettings, is_unset
from llm_retriever.stores.opening import fetched

SIMILARITY = bm25(k1=0.9, b=0.4)
"""Its parameters are those of BEIR's row of BM25, whatever the run's own collection was searched with."""
TEST_SPLIT = "test"


class ZeroShot:
    """Evaluates a retriever, and the baselines that the settings name, on further collections.

    Args:
        settings: Which collections, and how long their texts may be.
        taken: Names of the splits that are there already.

    Attributes:
        splits: Results by split, for `evaluation.json`.
        examples: Example queries by split.
        prepared: Parts of each collection, as `prepare` leaves them.
        collections: What each collection is, and the means of its parts.
        systems: What stands about the systems, by name.
        notes: Sentences for people.

    Raises:
        InputError: The setting cannot be read, or a directory does not exist.
    """

    def __init__(self, settings: EvaluationSettings, taken: Iterable[str]) -> None:
        self.settings = settings
        named_sources = named(settings.zero_shot, ZERO_SHOT, [*taken, ZERO_SHOT], parts=True)
        self.sources: dict[str, dict[str, str]] = {}
        self.prepared: dict[str, list[_Part]] = {}
        for name, source in named_sources.items():
            whole, _, part = name.partition("/")
            self.sources.setdefault(whole, {})[part] = source
        for source in named_sources.values():
            uri = split_off(source)[0]
            if "://" not in uri and not uri.startswith("demo:") and not Path(uri).is_dir():
                raise InputError(
                    "no such directory", file=uri, field=ZERO_SHOT, hint="give collections as [NAME=]URI[#SPLIT]"
                )
        self._evaluated: dict[str, _Collection] = {}
        self.splits: dict[str, dict[str, Any]] = {}
        self.examples: dict[str, SplitExamples] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.systems: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []

    def prepare(self, scratch: Path) -> None:
        """Prepares every collection.

        Args:
            scratch: Directory for them; must be there until they were evaluated.

        Raises:
            InputError: A collection cannot be used.
        """
        for name, sources in self.sources.items():
            parts = self.prepared[name] = []
            for part, source in sources.items():
                uri, split = split_off(source)
                with _parts(uri) as directories:
                    for folder, directory in directories.items():
                        place = scratch / f"{name}-{len(parts)}"
                        corpus = self._collection(name, directory, place)
                        parts.append(_Part("/".join(filter(None, (part, folder))), corpus, chosen(corpus, split)))

    def _collection(self, name: str, uri: str, directory: Path) -> Collection:
        tolerated = self.settings.zero_shot_max_bad_lines
        settings = CorpusSettings(uri=uri, heldout_queries=0, deduplicate=False, max_bad_lines=tolerated)
        counts = preparation.prepare(settings, directory, tolerate_empty=True)["counts"]
        if bad := counts["bad_lines"]:
            self.notes.append(f"{bad:,} unusable lines of {name} were left out ({BAD_LINES_FILE}).")
        if empty := counts.get("passages_empty", 0):
            self.notes.append(
                f"{empty:,} passages of {name} without any text were left out, and so were their judgments."
            )
        return Collection.open(directory)

    def judged(self) -> Iterator[tuple[str, Iterable[str]]]:
        """Yields every split by the name that it gets, and its judged queries; `prepare` was called."""
        for name, parts in self.prepared.items():
            for part in parts:
                for split in part.names:
                    yield split_name(name, part.name, split), part.corpus.qrels(split)

    def add_retriever(self, tuned: DenseSystem, runs: Path) -> None:
        """Evaluates the retriever, and BM25 beside it, on every collection; `prepare` was called.

        Args:
            tuned: The retriever with its index, whose settings the indexes of the collections share but for the length.
            runs: Directory of the runs.
        """
        missing = why_no_bm25() if self.sources else ""
        if missing:
            self.notes.append(f"BM25 was not run on the zero-shot collections: {missing}.")
        for name in self.sources:
            collection = self._evaluated[name] = _Collection(self, name, not missing)
            for part in self.prepared[name]:
                collection.add_retriever(part, tuned, runs)

    def tasks(self) -> list[Task]:
        """Benches to evaluate encoders and runs on; `add_retriever` was called."""
        return [Task(bench, *self.lengths()) for collection in self._evaluated.values() for bench in collection.benches]

    def lengths(self) -> tuple[int | None, int | None]:
        """Tokens of a query and of a passage; None = as an encoder says."""
        lengths = self.settings.zero_shot_query_length, self.settings.zero_shot_passage_length
        queries, passages = (None if is_unset(length) else length for length in lengths)
        return queries, passages

    def conclude(self) -> None:
        """Collects the figures of every collection; all systems were evaluated."""
        for name, collection in self._evaluated.items():
            for bench in collection.benches:
                self._take(bench)
            source = ", ".join(split_off(s)[0] for s in self.sources[name].values())
            self.collections[name] = {"source": source, **collection.summary()}

    def _take(self, bench: Bench) -> None:
        self.splits |= bench.results()
        self.examples |= {split.name: bench.examples(split) for split in bench.splits}
        self.systems |= bench.systems
        self.notes += bench.notes
        bench.rest()

    def content(self) -> dict[str, Any]:
        """Builds the part `zero_shot` of `evaluation.json`; {} where there are no collections."""
        if not self.collections:
            return {}
        lengths = dict(zip(("query_length", "passage_length"), self.lengths(), strict=True))
        mean = mean_of_systems([collection["systems"] for collection in self.collections.values()])
        lexical = {} if why_no_bm25() else {"bm25": search_parameters(SIMILARITY, self.settings.depth, BY_SCRIPT)}
        return {ZERO_SHOT: {**lengths, **lexical, "collections": self.collections, "mean": mean}}


class _Part(NamedTuple):
    """A prepared collection, or a part of one; `names` are the splits to evaluate."""

    name: str
    corpus: Collection
    names: list[str]


class _Collection:
    """One collection of several parts, or of one."""

    def __init__(self, whole: ZeroShot, name: str, with_bm25: bool) -> None:
        self.whole, self.name, self.with_bm25 = whole, name, with_bm25
        self.benches: list[Bench] = []
        self.seconds = 0.0

    def add_retriever(self, part: _Part, tuned: DenseSystem, runs: Path) -> None:
        """Encodes a part with the retriever, searches and judges."""
        corpus = part.corpus
        bench = Bench(self.whole.settings, corpus, runs, zero_shot=self.name, part=part.name, names=part.names)
        # Lucene builds its index beside the encoding.
        with SparseIndex(corpus) if self.with_bm25 else contextlib.nullcontext() as lucene:
            self._search(bench, tuned)
            if lucene is not None:
                add_bm25(bench, lucene)
        bench.rest()
        self.benches.append(bench)

    def _search(self, bench: Bench, tuned: DenseSystem) -> None:
        requested = self.whole.lengths()
        queries, passages = fitting(tuned.encoder, *requested)
        if [queries, passages].count(None) > requested.count(None):
            self._note_lengths()
        lengths = {"passage_length": passages or tuned.encoder.passage_length}
        settings = IndexSettings(**inherited(tuned.index.manifest) | lengths)
        started = time.monotonic()
        with encoded(tuned.encoder, bench.corpus, settings, queries) as system:
            self.seconds += time.monotonic() - started
            bench.add_dense(RETRIEVER, system)

    def _note_lengths(self) -> None:
        note = "The retriever cannot read texts of the length wanted for zero-shot collections: it read them cut as in training."
        if note not in self.whole.notes:
            self.whole.notes.append(note)

    def summary(self) -> dict[str, Any]:
        """Facts of the collection, and the unweighted mean over its parts."""
        splits = [split for bench in self.benches for split in bench.splits]
        systems = mean_of_systems([self.whole.splits[split.name]["systems"] for split in splits])
        return {
            "parts": len(self.benches),
            "splits": [split.name for split in splits],
            "passages": sum(bench.corpus.passage_count for bench in self.benches),
            "queries": sum(len(split.qrels) for split in splits),
            "index_seconds": round(self.seconds, 3),
            "systems": systems,
        }


def split_off(source: str) -> tuple[str, str]:
    """Splits ``URI[#SPLIT]`` into URI and split, ``""`` where none is named."""
    uri, mark, split = source.rpartition("#")
    return (uri, split) if mark and "/" not in split else (source, "")


def chosen(corpus: Collection, requested: str) -> list[str]:
    """Splits of a zero-shot collection: the requested one, else `test`, else all but `train`, else all.

    Raises:
        InputError: There is no such split.
    """
    if requested and requested not in corpus.splits:
        hint = f"use {', '.join(corpus.splits)}"
        raise InputError(f"the collection has no split {requested!r}", field=ZERO_SHOT, hint=hint)
    if requested or TEST_SPLIT in corpus.splits:
        return [requested or TEST_SPLIT]
    return [name for name in corpus.splits if name != TRAINING_SPLIT] or list(corpus.splits)


def why_no_bm25() -> str:
    """Reason why BM25 cannot run on this machine; "" where it can."""
    if importlib.util.find_spec("pyserini") is None:
        return "pyserini is not installed (extra [mine])"
    try:
        find_java()
    except InputError as error:
        return error.problem
    return ""


def add_bm25(bench: Bench, lucene: SparseIndex) -> None:
    """Searches the splits of a bench with BM25; `lucene` is the index of its collection."""
    depth = bench.settings.depth
    facts = {"description": "lexical search", "parameters": search_parameters(SIMILARITY, depth, lucene.language)}
    for split in bench.splits:
        run = {query: dict(ranking) for query, ranking in lucene.search(split.queries, split.depth, SIMILARITY)}
        bench.add_run(split, BM25, run, **facts)


@contextlib.contextmanager
def _parts(uri: str) -> Iterator[dict[str, str]]:
    """Yields URIs of the collections at a URI by the name of the part: one without a name, or the folders of a directory."""
    if not uri.startswith("s3://") and not Path(uri).is_dir():
        yield {"": uri}
        return
    with fetched(uri) as directory:
        folders = [folder for folder in sorted(directory.iterdir()) if folder.is_dir() and _is_collection(folder)]
        if folders and not _is_collection(directory):
            yield {folder.name: str(folder) for folder in folders}
        else:
            yield {"": str(directory)}


def _is_collection(directory: Path) -> bool:
    try:
        recognised(directory, str(directory))
    except InputError:
        return False
    return True
