"""Mines hard negatives for the training queries of a collection, and makes the BM25 runs of its other splits.

Paper and released code draw negatives from BM25's top 200 with the positives removed. Two more guards against unlabelled
positives, which MS MARCO's top ranks are full of, are off by default: a rank floor and a score ceiling.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation.runs import RUNS_MANIFEST, write_run
from llm_retriever.mining.bm25 import BM25, Ranking
from llm_retriever.mining.selection import Rule, select
from llm_retriever.mining.statistics import Statistics
from llm_retriever.mining.twins import Twins, text_key
from llm_retriever.progress import Progress
from llm_retriever.settings import MiningSettings
from llm_retriever.training_set import TrainingExample, write_training_set

TRAINING_SPLIT = "train"
SYSTEM = "BM25"
RELEVANT = 1


def mine(
    settings: MiningSettings, collection: Path, training_set: Path, bm25_runs: Path, statistics: Path
) -> dict[str, Any]:
    """Mines a collection; the outputs appear when they are complete.

    The same collection and settings give the same bytes, whatever the number of threads.

    Args:
        settings: How deep to search, what to leave out, how many to draw.
        collection: The output of prepare_corpus.
        training_set: Where the training set goes.
        bm25_runs: Where the runs of all splits but `train` go: `<split>.trec` and `runs.json`.
        statistics: Where the Markdown goes that tells what was found.

    Returns:
        The manifest of the training set.

    Raises:
        InputError: It is not a collection, it has no training split, or no training query is left.
    """
    source = Collection.open(collection)
    if TRAINING_SPLIT not in source.splits:
        raise InputError(
            f"the collection has no split {TRAINING_SPLIT!r}, so there is nothing to mine for",
            file=collection,
            mend=f"prepare it from a source with qrels/{TRAINING_SPLIT}.tsv",
        )
    return _Mining(settings, source).run(training_set, bm25_runs, statistics)


class _Mining:
    def __init__(self, settings: MiningSettings, collection: Collection) -> None:
        self.settings, self.collection = settings, collection
        self.statistics = Statistics(settings.depth, settings.negatives)

    def run(self, training_set: Path, bm25_runs: Path, statistics: Path) -> dict[str, Any]:
        s = self.settings
        with BM25(self.collection, k1=s.bm25_k1, b=s.bm25_b, threads=s.threads) as bm25:
            queries = self._training_queries()
            positives = self._positives(queries)
            # Reads the corpus while Lucene's process indexes it.
            twins = Twins(self.collection.passages(), set().union(*positives.values()), queries.values())
            bm25.wait()
            with files.atomic_directory(bm25_runs) as draft:
                self._write_runs(bm25, draft)
                examples = self._examples(bm25, queries, positives, twins)
                manifest = write_training_set(
                    training_set, examples, self._recipe(), self.statistics.counts, self.collection
                )
        files.write_text(statistics, self.statistics.markdown(self._recipe()))
        return manifest

    def _training_queries(self) -> dict[str, str]:
        return self.collection.queries(TRAINING_SPLIT)

    def _positives(self, queries: Mapping[str, str]) -> dict[str, set[str]]:
        qrels = self.collection.qrels(TRAINING_SPLIT)
        return {q: {p for p, grade in qrels[q].items() if grade >= RELEVANT} for q in queries}

    def _examples(
        self, bm25: BM25, queries: Mapping[str, str], positives: Mapping[str, set[str]], twins: Twins
    ) -> Iterator[TrainingExample]:
        asked = {query_id: text for query_id, text in queries.items() if positives[query_id]}
        self.statistics.count_queries(len(queries), without_positives=len(queries) - len(asked))
        with Progress("mine negatives", len(asked), "queries") as progress:
            for query_id, ranking in bm25.search(asked, self.settings.depth):
                example = self._example(query_id, asked[query_id], ranking, positives[query_id], twins)
                progress.update()
                if example is not None:
                    yield example
        if not self.statistics.counts["examples"]:
            raise InputError(
                "no training query has a negative left",
                file=self.collection.directory,
                mend="raise depth, lower rank_floor, or raise score_ceiling",
            )

    def _example(
        self, query_id: str, query: str, ranking: Ranking, positives: set[str], twins: Twins
    ) -> TrainingExample | None:
        same = {twins.key(passage) for passage in positives} | {text_key(query)}
        rule = Rule(self.settings.negatives, self.settings.rank_floor, self.settings.score_ceiling, self.settings.seed)
        selection = select(query_id, ranking, positives, lambda passage: twins.key(passage) in same, rule)
        self.statistics.add(selection)
        if not selection.negatives:
            return None
        return TrainingExample(query_id, query, tuple(sorted(positives)), selection.negatives)

    def _write_runs(self, bm25: BM25, directory: Path) -> None:
        for split in self.collection.splits:
            if split == TRAINING_SPLIT:
                continue
            queries = self.collection.queries(split)
            with Progress(f"search {split} with BM25", len(queries), "queries") as progress:
                rows = self._watched(bm25.search(queries, self.settings.evaluation_depth), progress)
                write_run(directory / f"{split}.trec", rows, SYSTEM)
        manifest = {"system": SYSTEM, "parameters": self._parameters(self.settings.evaluation_depth)}
        files.write_json(directory / RUNS_MANIFEST, {**manifest, "collection": self.collection.fingerprint})

    @staticmethod
    def _watched(rows: Iterator[tuple[str, Ranking]], progress: Progress) -> Iterator[tuple[str, Ranking]]:
        for row in rows:
            yield row
            progress.update()

    def _parameters(self, depth: int) -> dict[str, Any]:
        return {
            "k1": self.settings.bm25_k1,
            "b": self.settings.bm25_b,
            "depth": depth,
            "contents": "title and text",
            "analyzer": "English, stop words, Porter stemmer",
            "pyserini": importlib.metadata.version("pyserini"),
        }

    def _recipe(self) -> dict[str, Any]:
        s = self.settings
        return {
            "sources": {"bm25": self._parameters(s.depth)},
            "negatives": s.negatives,
            "rank_floor": s.rank_floor,
            "score_ceiling": s.score_ceiling,
            "seed": s.seed,
        }
