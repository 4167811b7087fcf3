"""The baselines that a retriever is compared with: lexical runs, its own backbone before any training, published encoders
and runs that somebody else made."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm_retriever import encoders
from llm_retriever.data.collection import Collection
from llm_retriever.data.part import part_of
from llm_retriever.encoders.interface import Encoder
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.encoders.table import TABLE
from llm_retriever.errors import InputError
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.evaluation.named_list import last_part, named
from llm_retriever.evaluation.systems import BM25Runs, DenseSystem, SparseSystem, encoded
from llm_retriever.indexing.shards import Manifest
from llm_retriever.metrics.conventions import BACKBONE, BM25, HYBRIDS, PRODUCTION, RETRIEVER
from llm_retriever.metrics.runs import Run, read_run
from llm_retriever.models.card import RetrieverCard
from llm_retriever.settings import EvaluationSettings, IndexSettings
from llm_retriever.stores.opening import LocalStore, Store, open_store
from llm_retriever.stores.uris import check_scheme
from llm_retriever.training.vocabulary import added_tokens

SPLIT = "{split}"
Judged = Iterable[tuple[str, Iterable[str]]]
INHERITED = ("passage_length", "batch_tokens", "dtype", "dimension")
"""What the index of a baseline has in common with that of the retriever; it is searched exactly whatever that one is."""


def inherited(manifest: Manifest) -> dict[str, Any]:
    """Settings that a baseline's index takes from the retriever's; an index of an earlier version says no dimension."""
    return {name: manifest.settings[name] for name in INHERITED if name in manifest.settings}


def add_lexical(bench: Bench, runs: BM25Runs) -> None:
    """Adds the runs of BM25 and of other lexical systems, on the splits that have one."""
    for name, system in runs.systems.items():
        _note_shallow(bench, name, system)
        for split in bench.splits:
            run = runs.run(split.name, split.depth, name)
            file = runs.file(split.name, name)
            if run is None or file is None:
                split.notes.append(f"There is no {name} run of this split, so {name} is not compared.")
                continue
            bench.add_run(split, name, run, description=system.description, parameters=system.parameters)
            bench.check_passages(split, name, file)


def _note_shallow(bench: Bench, name: str, system: SparseSystem) -> None:
    deepest = max(measure.cutoff for measure in bench.measures)
    if system.depth < min(deepest, bench.corpus.passage_count):
        bench.notes.append(
            f"{name} was searched to depth {system.depth:,} only: its metrics with a larger cutoff are lower bounds."
        )


def add_untuned(bench: Bench, backbone: Path, tuned: DenseSystem, card: RetrieverCard) -> float | None:
    """Searches every split with the un-tuned backbone, which is worded, read out and cut as the tuned system is.

    A corpus larger than the limit is searched in part: what is judged, and random others. Where passages are left out that
    are not relevant, no relevant one falls to a lower rank, so that its figures are then upper bounds.

    Returns:
        Wall-clock seconds, encoding included; None when it was left out.
    """
    if not bench.settings.untuned_passages:
        bench.notes.append("The un-tuned backbone was not evaluated: untuned_passages is 0.")
        return None
    missing = added_tokens(card, backbone)
    if missing:
        bench.notes.append(
            f"The un-tuned backbone was not evaluated: the retriever is read out at {missing[0]}, a token that only stage one "
            "has added."
        )
        return None
    started = time.monotonic()
    description = "the same backbone before any training, worded and read out like the retriever"
    untuned = Retriever.on_backbone(backbone, card, precision=bench.settings.precision)
    settings = IndexSettings(**inherited(tuned.index.manifest))
    with _bounded(bench) as corpus, encoded(untuned, corpus, settings, tuned.query_length) as system:
        bench.add_dense(BACKBONE, system, description=description, passages=corpus.passage_count)
    return time.monotonic() - started


@contextlib.contextmanager
def _bounded(bench: Bench) -> Iterator[Collection]:
    """The corpus, or as much of it as the un-tuned backbone may encode."""
    limit, count = bench.settings.untuned_passages, bench.corpus.passage_count
    if count <= limit:
        yield bench.corpus
        return
    judged = {passage for split in bench.splits for grades in split.qrels.values() for passage in grades}
    with tempfile.TemporaryDirectory(prefix="part-") as scratch:
        part = part_of(bench.corpus, Path(scratch), max(0, limit - len(judged)), judged)
        bench.notes.append(
            f"The un-tuned backbone searched {part.passage_count:,} of {count:,} passages (untuned_passages): all judged ones, "
            "and others drawn at random. Fewer passages only raise its figures: they are upper bounds."
        )
        yield part


class Task(NamedTuple):
    """A bench to evaluate encoders on; lengths are tokens of a text, None = as an encoder says."""

    bench: Bench
    query_length: int | None = None
    passage_length: int | None = None


class Baselines:
    """The baselines that the settings name, for every collection of an evaluation.

    Args:
        settings: `encoders` and `runs`.
        taken: Names of other systems.

    Raises:
        InputError: A name cannot be used, or stands twice, or an encoder is not there.
    """

    def __init__(self, settings: EvaluationSettings, taken: Mapping[str, Any]) -> None:
        self.settings = settings
        names = [RETRIEVER, *HYBRIDS, PRODUCTION, BM25, BACKBONE, *taken]
        sources = named(_with_rows(settings.encoders), "encoders", names)
        self.encoders = {name: source.replace(";", ",") if _row(source) else source for name, source in sources.items()}
        self.runs = named(settings.runs, "runs", [*names, *self.encoders])
        for source in self.encoders.values():
            encoders.check(source)

    def add(self, tasks: Sequence[Task]) -> dict[str, float]:
        """Evaluates them on benches; each encoder is loaded once, and freed before the next one.

        Returns:
            Wall-clock seconds by encoder on the collection itself, loading included.
        """
        seconds = dict[str, float]()
        for name, source in self.encoders.items():
            small = [task for task in tasks if self._is_small(task.bench, name)]
            if small:
                seconds |= self._add_encoder(small, name, source)
        for name, pattern in self.runs.items():
            for task in tasks:
                self._add_run(task.bench, name, pattern)
        return seconds

    def _is_small(self, bench: Bench, name: str) -> bool:
        """Whether an encoder is evaluated on a bench; notes it where not."""
        count, limit = bench.corpus.passage_count, self.settings.encoder_passages
        if count > limit:
            where = f" on {bench.zero_shot}" if bench.zero_shot else ""
            bench.notes.append(
                f"{name} was not evaluated{where}: {count:,} passages are more than the limit of {limit:,} (encoder_passages)."
            )
        return count <= limit

    def _add_encoder(self, tasks: Sequence[Task], name: str, source: str) -> dict[str, float]:
        started, seconds = time.monotonic(), dict[str, float]()
        encoder = encoders.load(source, precision=self.settings.precision)
        row = _row(source)
        description = f"a published encoder ({row})" if row else f"an encoder that was given ({last_part(source)})"
        for bench, *lengths in tasks:
            queries, passages = fitting(encoder, *lengths)
            settings = IndexSettings() if passages is None else IndexSettings(passage_length=passages)
            with encoded(encoder, bench.corpus, settings, queries) as system:
                bench.add_dense(name, system, description=description, parameters=_parameters(encoder))
            if not bench.zero_shot:
                seconds[name] = time.monotonic() - started
            bench.rest()
        return seconds

    def _add_run(self, bench: Bench, name: str, pattern: str) -> None:
        if bench.zero_shot and SPLIT not in pattern:
            return  # of the run's own collection; query ids that are numbers stand in many others
        for split in bench.splits:
            place = pattern.replace(SPLIT, split.name)
            run = with_kept_ids(_opened(place), bench.corpus) if self._may_have(pattern, place) else None
            judged = {query: run[query] for query in split.qrels if query in run} if run else {}
            if run is None or (run and not judged):
                split.notes.append(f"There is no run of {name} for this split, so {name} is not compared.")
                continue
            bench.add_run(split, name, judged, description=f"a run that was given ({last_part(pattern)})")
            bench.check_passages(split, name, place)

    @staticmethod
    def _may_have(pattern: str, place: str) -> bool:
        """Whether there is a file for a split; one without the split's name must be there in any case."""
        return SPLIT not in pattern or _exists(place)

    def check_runs(self, own: Judged, zero_shot: Judged) -> None:
        """Raises InputError for runs that do not exist, or have no query of any split; called before anything is encoded.

        Args:
            own: Name and judged queries of every split of the collection.
            zero_shot: The same of the zero-shot collections, which only runs with `SPLIT` are of.

        Raises:
            InputError: It names the first run.
        """
        splits, others = list(own), list(zero_shot) if self.runs else []
        for name, pattern in self.runs.items():
            of_splits = ((pattern.replace(SPLIT, split), judged) for split, judged in [*splits, *others])
            places = of_splits if SPLIT in pattern else ((pattern, set().union(*(judged for _, judged in splits))),)
            fitting_places = (
                place for place, judged in places if self._may_have(pattern, place) and _has_any(place, judged)
            )
            if next(fitting_places, None) is None:
                raise InputError(
                    f"the run {name} has no query of the splits", file=pattern, field="runs", hint="name a run of them"
                )


def _with_rows(text: str) -> str:
    """Puts the names of rows in front in the setting `encoders`: ``dpr=PLACE`` says how weights are wired, and names them."""
    entries = [entry.strip() for entry in text.split(",")]
    return ",".join(f"{row}={e}" if (row := e.partition("=")[0]) in TABLE and "=" in e else e for e in entries)


def _row(source: str) -> str:
    """Row of the table that an encoder is, with or without commits or places of its own; "" where it is none."""
    head = re.split("[=@]", source)[0]
    return head if head in TABLE else ""


def _has_any(place: str, judged: Iterable[str]) -> bool:
    """Whether a run has some of these queries; an empty one may have any."""
    run = _opened(place)
    return not run or any(query in run for query in judged)


def with_kept_ids(run: Run, corpus: Collection) -> Run:
    """Renames passages of a run that were merged into another one to that one; the higher score stays."""
    kept = corpus.kept_ids(set().union(*run.values()))
    if not kept:
        return run
    renamed: Run = {}
    for query, ranking in run.items():
        scores = renamed.setdefault(query, {})
        for passage, score in ranking.items():
            name = kept.get(passage, passage)
            scores[name] = max(score, scores.get(name, score))
    return renamed


def fitting(encoder: Encoder, query_length: int | None, passage_length: int | None) -> tuple[int | None, int | None]:
    """Resolves lengths: None where the encoder cannot read so many tokens and so reads as many as it was made for.

    The lengths are those of one copy of a text, as in the settings of the training: Echo gets twice as many.
    """
    queries = tokens_of_all_copies(encoder, "query", query_length)
    passages = tokens_of_all_copies(encoder, "passage", passage_length)
    return _readable(encoder.tokenise_queries, queries), _readable(encoder.tokenise_passages, passages)


def _readable(tokenise: Callable[..., Any], length: int | None) -> int | None:
    try:
        tokenise([""], length=length)
    except InputError:
        return None
    return length


def tokens_of_all_copies(encoder: Encoder, side: Literal["query", "passage"], length: int | None) -> int | None:
    """Tokens of a text with its prompt where a setting says `length`, for one copy; None = as the encoder says."""
    return encoder.card.tokens(side, length) if length and isinstance(encoder, Retriever) else length


def _parameters(encoder: Encoder) -> dict[str, Any]:
    return {"name": encoder.name, "dimension": encoder.dimension, "precision": encoder.precision}


def _at(place: str) -> tuple[Store, str]:
    """Splits a place into its store and the key there."""
    check_scheme(place, field="runs")  # of the whole: `open_store` would show what is left without the key
    parent, slash, key = place.rpartition("/")
    return open_store(parent or slash or "."), key


def _exists(place: str) -> bool:
    store, key = _at(place)
    return store.exists(key)


def _opened(place: str) -> Run:
    """Reads a run from a file or an s3:// object."""
    with _local(place) as path:
        return read_run(path)


@contextlib.contextmanager
def _local(place: str) -> Iterator[Path]:
    store, key = _at(place)
    if isinstance(store, LocalStore):
        yield store.directory / key
        return
    with tempfile.TemporaryDirectory(prefix="run-") as scratch:
        path = Path(scratch) / key
        path.write_bytes(store.read(key))
        yield path
