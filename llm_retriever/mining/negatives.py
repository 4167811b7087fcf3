"""Mines hard negatives for the training queries of a collection, and makes the sparse runs of its other splits.

The recipe of RepLLaMA and LLM-QL: negatives from the union of BM25's top 200 and a dense encoder's, coCondenser in the
papers, with the positives removed. Further guards against unlabelled positives, which MS MARCO's top ranks are full of,
are off by default: a rank floor, and a score ceiling relative to the positive (NV-Retriever, Moreira et al. 2024).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.bm25.runs import search_parameters, write_runs
from llm_retriever.bm25.similarities import Similarity, bm25, chosen_bm25, parse_baselines
from llm_retriever.bm25.sparse import LUCENE_FOLDER, Ranking, SparseIndex
from llm_retriever.bm25.tuning import Tuning, check_tunable, tune
from llm_retriever.data.collection import RELEVANT, Collection
from llm_retriever.data.training_set import TrainingExample, write_training_set
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.metrics.conventions import TRAINING_SPLIT
from llm_retriever.mining.dense import dense_index
from llm_retriever.mining.false_negatives import EqualTexts, NearCopies, Sample, text_key
from llm_retriever.mining.selection import DENSE, SPARSE, TEACHER, Rule, Selection, parse_sources, select
from llm_retriever.mining.statistics import Statistics
from llm_retriever.mining.summary import markdown
from llm_retriever.progress import Progress
from llm_retriever.settings import IndexSettings, MiningSettings

RANDOM_POOL = 10_000
Search = Callable[[Mapping[str, str], int], Iterator[tuple[str, Ranking]]]


def mine(
    settings: MiningSettings, collection: Path, training_set: Path, bm25_runs: Path, statistics: Path, picture: Path
) -> dict[str, Any]:
    """Mines a collection; the outputs appear when they are complete.

    The same collection and settings give the same bytes, whatever the number of threads, but for those of Lucene's index.
    With an encoder, the vectors of the corpus lie beside `training_set` until it is complete; a run that was killed takes
    them up.

    Args:
        settings: Who searches how deep, what to leave out, how many to draw.
        collection: The output of prepare_corpus.
        training_set: Where the training set goes.
        bm25_runs: Where the runs of all splits but `train` go: `<split>.trec`, `<split>.<baseline>.trec`, `runs.json`;
            and `lucene/`, the index of the collection.
        statistics: Where the Markdown summary goes.
        picture: Where the HTML page with charts goes.

    Returns:
        The manifest of the training set.

    Raises:
        InputError: It is not a collection, it has no training split, no training query is left, or a setting does not
            suit the collection or the other settings.
    """
    source = Collection.open(collection)
    if TRAINING_SPLIT not in source.splits:
        raise InputError(
            f"the collection has no split {TRAINING_SPLIT!r}, so there is nothing to mine for",
            file=collection,
            hint=f"prepare it from a source with qrels/{TRAINING_SPLIT}.tsv",
        )
    return _Mining(settings, source).run(training_set, bm25_runs, statistics, picture)


class _Mining:
    def __init__(self, settings: MiningSettings, collection: Collection) -> None:
        self.settings, self.collection = settings, collection
        self.teacher = collection.teacher_scores()
        self.sources, quotas = parse_sources(
            settings.sources,
            with_encoder=bool(settings.encoder),
            negatives=settings.negatives,
            with_teacher=bool(self.teacher),
        )
        self.rule = Rule(settings.negatives, quotas, settings.rank_floor, settings.score_ceiling, settings.seed)
        self.baselines = parse_baselines(settings.baselines)
        check_tunable(settings, collection)
        self.statistics = Statistics(self.sources, settings.depth, settings.negatives)

    def run(self, training_set: Path, bm25_runs: Path, statistics: Path, picture: Path) -> dict[str, Any]:
        from llm_retriever.mining.picture import page

        s = self.settings
        with contextlib.ExitStack() as open_:
            draft = open_.enter_context(layouts.BM25_RUNS.output(bm25_runs))
            kept = draft / LUCENE_FOLDER
            sparse = SparseIndex(self.collection, threads=s.threads, language=s.bm25_language, directory=kept)
            index = open_.enter_context(sparse)
            queries = self.collection.queries(TRAINING_SPLIT)
            guards = _Guards(self.settings, self.collection, queries)
            # Both read the corpus while Lucene's process indexes it.
            searches, used = self._dense(open_, training_set)
            index.wait()
            similarity, tuning = self._bm25(index)
            searches[SPARSE] = lambda asked, depth: index.search(asked, depth, similarity)
            searches[TEACHER] = self._scored
            recipe = self._recipe(similarity, tuning, used, index.language)
            self._write_runs(index, similarity, tuning, draft)
            examples = self._examples({name: searches[name] for name in self.sources}, guards)
            manifest = write_training_set(training_set, examples, recipe, self.statistics.counts, self.collection)
        files.write_text(statistics, markdown(self.statistics, recipe))
        files.write_text(picture, page(self.statistics, recipe))
        return manifest

    def _dense(self, open_: contextlib.ExitStack, training_set: Path) -> tuple[dict[str, Search], dict[str, Any]]:
        """Builds the dense search, by its name, and its description; none without an encoder."""
        s = self.settings
        if DENSE not in self.sources:
            return {}, {}
        from llm_retriever import encoders

        load = functools.partial(encoders.load, s.encoder, precision=s.precision)
        index = IndexSettings(
            batch_tokens=s.encoder_batch_tokens,
            dtype=s.encoder_dtype,
            processes=s.processes,
            shards_uri=s.encoder_shards_uri,
        )
        scratch = training_set.with_name(f".{training_set.name}.vectors")
        dense = open_.enter_context(dense_index(load, self.collection, scratch, index))
        return {DENSE: dense.search}, {DENSE: {"given": s.encoder, **dense.parameters(s.depth)}}

    def _scored(self, queries: Mapping[str, str], depth: int) -> Iterator[tuple[str, Ranking]]:
        """Yields each query's passages that the source's own teacher has scored, best first."""
        for query_id in queries:
            ranked = sorted(self.teacher.get(query_id, {}).items(), key=lambda hit: (-hit[1], hit[0]))
            yield query_id, ranked[:depth]

    def _bm25(self, index: SparseIndex) -> tuple[Similarity, Tuning | None]:
        if not self.settings.bm25_tune_split:
            return chosen_bm25(self.settings), None
        tuning = tune(index, self.collection, self.settings)
        return bm25(*tuning.best), tuning

    def _write_runs(self, index: SparseIndex, similarity: Similarity, tuning: Tuning | None, draft: Path) -> None:
        splits = [split for split in self.collection.splits if split != TRAINING_SPLIT]
        depth = self.settings.evaluation_depth
        write_runs(index, self.collection, splits, depth, similarity, self.baselines, draft, tuning)

    def _examples(self, searches: Mapping[str, Search], guards: _Guards) -> Iterator[TrainingExample]:
        asked = {query_id: text for query_id, text in guards.queries.items() if guards.positives[query_id]}
        number = len(guards.queries)
        self.statistics.count_queries(number, without_positives=number - len(asked))
        with Progress("mine negatives", len(asked), "queries") as progress:
            for query_id, rankings in _together(searches, asked, self.settings.depth):
                selection = guards.select(query_id, rankings, self.rule)
                self.statistics.add(selection, rankings)
                progress.update()
                if selection.negatives:
                    positives = tuple(sorted(guards.positives[query_id]))
                    example = TrainingExample(query_id, asked[query_id], positives, selection.negatives)
                    yield with_scores(example, self.teacher.get(query_id, {}))
        if not self.statistics.counts["examples"]:
            raise InputError(
                "no training query has a negative left",
                file=self.collection.directory,
                hint="raise depth, lower rank_floor, raise score_ceiling, or switch random_top_up on",
            )

    def _recipe(
        self, similarity: Similarity, tuning: Tuning | None, used: Mapping[str, Any], language: str
    ) -> dict[str, Any]:
        s = self.settings
        sparse = search_parameters(similarity, s.depth, language) | ({"tuning": tuning.as_json()} if tuning else {})
        described = {SPARSE: sparse, TEACHER: {"depth": s.depth}, **used}
        return {
            "sources": {name: described[name] for name in self.sources},
            "quotas": dict(self.rule.quotas),
            "negatives": s.negatives,
            "rank_floor": s.rank_floor,
            "score_ceiling": s.score_ceiling,
            "near_duplicate": s.near_duplicate,
            "random_top_up": s.random_top_up,
            "seed": s.seed,
        }


def with_scores(example: TrainingExample, scores: Mapping[str, float]) -> TrainingExample:
    """Adds a teacher's scores, by passage id, to an example, as far as there are any."""
    negatives = tuple(dataclasses.replace(n, score_teacher=scores.get(n.id)) for n in example.negatives)
    positives = tuple(scores[passage] for passage in example.positives if passage in scores)
    complete = positives if len(positives) == len(example.positives) else ()
    return dataclasses.replace(example, negatives=negatives, positives_teacher=complete)


class _Guards:
    """Keeps positives out of the negatives: judgments, equal texts, near copies.

    Attributes:
        queries: Text by training query id.
        positives: Ids of the relevant passages by training query id.
    """

    def __init__(self, settings: MiningSettings, collection: Collection, queries: Mapping[str, str]) -> None:
        self.queries = queries
        qrels, self._own = collection.qrels(TRAINING_SPLIT), collection.own_passages(TRAINING_SPLIT)
        self.positives = {q: {p for p, grade in qrels[q].items() if grade >= RELEVANT} for q in queries}
        sample = Sample(RANDOM_POOL if settings.random_top_up else 0, settings.seed)
        passages = sample.watching(collection.passages())
        self._equal_texts = EqualTexts(passages, set().union(*self.positives.values()), queries.values())
        self._spare = sample.ids
        lookup = collection.lookup() if settings.near_duplicate else None
        self._near = NearCopies(lookup, settings.near_duplicate)

    def select(self, query_id: str, rankings: Mapping[str, Ranking], rule: Rule) -> Selection:
        positives, key = self.positives[query_id], self._equal_texts.key
        same = {key(passage) for passage in positives} | {text_key(self.queries[query_id])}
        own = query_id if query_id in self._own else None  # It is the query, whatever its text is.
        return select(
            query_id,
            rankings,
            positives,
            rule,
            same_text=lambda passage: passage == own or key(passage) in same,
            near_copy=self._near.of(positives),
            spare=self._spare,
        )


def _together(
    searches: Mapping[str, Search], queries: Mapping[str, str], depth: int
) -> Iterator[tuple[str, dict[str, Ranking]]]:
    """Yields the rankings of every query by source: all searches answer in the order of the queries."""
    streams = [search(queries, depth) for search in searches.values()]
    for answers in zip(*streams, strict=True):
        yield answers[0][0], {name: ranking for name, (_, ranking) in zip(searches, answers, strict=True)}
