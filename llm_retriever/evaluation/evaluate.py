"""The step `evaluate`: every system on every split, compared, written down and reported."""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.adaptation.vocabulary import added_tokens
from llm_retriever.card import RetrieverCard, load_lineage
from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation import account, verdict
from llm_retriever.evaluation import report as report_page
from llm_retriever.evaluation.examples import Examples, judge, most_different
from llm_retriever.evaluation.metrics import means, parse_measures
from llm_retriever.evaluation.runs import Run, write_run
from llm_retriever.evaluation.significance import ALPHA, DRAWS, FAMILY, Comparison, compare
from llm_retriever.evaluation.splits import (
    BACKBONE,
    BM25,
    RETRIEVER,
    SplitResults,
    chosen_measures,
    chosen_splits,
    open_split,
)
from llm_retriever.evaluation.systems import BM25Runs, DenseSystem, check_fingerprint, untuned_backbone
from llm_retriever.indexing.search import Index
from llm_retriever.retriever import Retriever
from llm_retriever.settings import UNSET_NUMBER, EvaluationSettings

EVALUATION_FILE = "evaluation.json"
RUNS_DIRECTORY = "runs"
FORMAT = 1


def evaluate(
    settings: EvaluationSettings,
    *,
    index: Path,
    retriever: Path,
    backbone: Path,
    collection: Path,
    bm25_runs: Path,
    evaluation: Path,
    report: Path,
    summary: Path,
) -> dict[str, float]:
    """Evaluates a retriever against BM25 and its un-tuned backbone.

    Args:
        settings: What to measure, and on what.
        index: Output of build_index.
        retriever: Output of tune_retriever.
        backbone: Output of fetch_backbone.
        collection: Output of prepare_corpus.
        bm25_runs: Output of mine_negatives.
        evaluation: Directory to write: `evaluation.json` and `runs/<split>/<system>.trec`.
        report: HTML file to write.
        summary: Markdown file to write.

    Returns:
        Flat finite numbers: ``test_ndcg_at_10`` of the retriever, ``test_ndcg_at_10_bm25`` of a baseline, and so on.

    Raises:
        InputError: A setting or an input cannot be used; nothing is written.
    """
    corpus = Collection.open(collection)
    bench = Bench(settings, corpus)
    bm25 = BM25Runs(bm25_runs, corpus)
    card = RetrieverCard.load(retriever)
    _check_backbone(backbone, card)
    tuned = _tuned_system(settings, index, retriever, bench)
    with files.atomic_directory(evaluation) as draft:
        runs = draft / RUNS_DIRECTORY
        bench.add_bm25(bm25, runs)
        bench.add_dense(RETRIEVER, tuned, runs)
        untuned_seconds = bench.add_untuned(backbone, tuned, runs)
        content = bench.results() | {
            "card": card.digest(),
            "method": card.method,
            "recipe": card.recipe,
            "systems": account.descriptions(card, bm25.parameters, bench.splits),
            "costs": account.costs(card, tuned, untuned_seconds),
            "lineage": dataclasses.asdict(card.lineage),
            "versions": account.versions(),
        }
        files.write_json(draft / EVALUATION_FILE, content)
        examples = {split.name: bench.examples(split) for split in bench.splits}
        files.write_text(report, report_page.render(content, corpus.manifest, examples, account.curves(retriever)))
        files.write_text(summary, verdict.summary_markdown(content))
    return flat_metrics(content)


def _check_backbone(backbone: Path, card: RetrieverCard) -> None:
    found = load_lineage(backbone)
    if found.digest != card.lineage.digest:
        raise InputError(
            f"not the backbone that the retriever was made from ({card.lineage.source})",
            file=backbone,
            field="backbone",
            mend="give the output of fetch_backbone of the same run",
        )


def _tuned_system(settings: EvaluationSettings, index: Path, retriever: Path, bench: Bench) -> DenseSystem:
    opened = Index.open(index, RetrieverCard.load(retriever))
    check_fingerprint(opened.manifest.collection, bench.corpus, index)
    loaded = Retriever.load(retriever, precision=settings.precision)
    length = None if settings.query_length == UNSET_NUMBER else settings.query_length
    return DenseSystem(loaded, opened, bench.passages, length)


class Bench:
    """The splits and measures of an evaluation, and what the systems did on them.

    Args:
        settings: What to measure, and on what.
        corpus: The collection.

    Raises:
        InputError: A setting cannot be used with this collection.
    """

    def __init__(self, settings: EvaluationSettings, corpus: Collection) -> None:
        self.settings, self.corpus = settings, corpus
        self.measures, self.primary = chosen_measures(settings)
        names = chosen_splits(settings, corpus)
        self.splits = [open_split(corpus, name, settings.relevance_level) for name in names]
        self.passages = corpus.lookup()
        self.notes: list[str] = []

    def add_dense(self, name: str, system: DenseSystem, runs: Path) -> None:
        """Searches every split with a dense system."""
        for split in self.splits:
            self._add(split, name, system.run(split.queries, self.settings.depth), runs)

    def add_bm25(self, bm25: BM25Runs, runs: Path) -> None:
        """Takes the BM25 runs of the splits that have one."""
        deepest = max(measure.cutoff for measure in self.measures)
        if bm25.depth < min(deepest, self.corpus.passage_count):
            self.notes.append(
                f"BM25 was searched to depth {bm25.depth:,} only: its metrics with a larger cutoff are lower bounds."
            )
        for split in self.splits:
            run = bm25.run(split.name, self.settings.depth)
            if run is None:
                split.notes.append("There is no BM25 run of this split, so BM25 is not compared.")
            else:
                self._add(split, BM25, run, runs)
                self._check_passages(split.judged[BM25].top, bm25.directory / f"{split.name}.trec")

    def _check_passages(self, top: Mapping[str, list[str]], file: Path) -> None:
        for passage in itertools.chain.from_iterable(top.values()):
            if passage not in self.passages:
                raise InputError(
                    f"passage {passage!r} is not in the collection",
                    file=file,
                    mend="make the run anew from this collection",
                )

    def add_untuned(self, backbone: Path, tuned: DenseSystem, runs: Path) -> float | None:
        """Encodes the corpus with the un-tuned backbone, where the corpus is small enough, and searches every split.

        Returns:
            Wall-clock seconds, encoding included; None when it was left out.
        """
        limit = self.settings.untuned_passages
        if self.corpus.passage_count > limit:
            self.notes.append(
                f"The un-tuned backbone was not evaluated: {self.corpus.passage_count:,} passages are more than the limit "
                f"of {limit:,} (untuned_passages)."
            )
            return None
        missing = added_tokens(tuned.retriever.card, backbone)
        if missing:
            self.notes.append(
                f"The un-tuned backbone was not evaluated: the retriever is read out at {missing[0]}, a token that only stage "
                "one has added."
            )
            return None
        started = time.monotonic()
        with untuned_backbone(backbone, tuned, self.corpus, self.settings.precision) as untuned:
            self.add_dense(BACKBONE, untuned, runs)
        return time.monotonic() - started

    def _add(self, split: SplitResults, name: str, run: Run, runs: Path) -> None:
        write_run(runs / split.name / f"{name}.trec", ((q, list(ranking.items())) for q, ranking in run.items()), name)
        split.judged[name] = judge(self.measures, split.qrels, run, split.level)

    def results(self) -> dict[str, Any]:
        """The part of `evaluation.json` that was measured."""
        return {
            "format": FORMAT,
            "collection": self.corpus.fingerprint,
            "corpus": account.corpus_name(self.corpus),
            "primary_metric": self.primary.name,
            "measures": [measure.name for measure in self.measures],
            "depth": self.settings.depth,
            "significance": {"level": ALPHA, "correction": "Hommel", "family": FAMILY, "draws": DRAWS},
            "splits": {split.name: self._split_results(split) for split in self.splits},
            "notes": self.notes,
        }

    def _split_results(self, split: SplitResults) -> dict[str, Any]:
        all_judged = split.in_order()
        per_query = {name: judged.scores[self.primary.name] for name, judged in all_judged.items()}
        baselines = {name: values for name, values in per_query.items() if name != RETRIEVER}
        compared = compare(self.primary.name, per_query[RETRIEVER], baselines)
        return {
            "queries": len(split.qrels),
            "judgments": sum(len(grades) for grades in split.qrels.values()),
            "relevance_level": split.level,
            "systems": {name: means(judged.scores) for name, judged in all_judged.items()},
            "comparisons": [_as_json(comparison) for comparison in compared],
            "per_query": per_query,
            "notes": split.notes,
        }

    def examples(self, split: SplitResults) -> report_page.SplitExamples:
        """Queries won and lost against the first baseline."""
        judged = split.in_order()
        if len(judged) < 2:
            return report_page.SplitExamples(against="")
        metric, shown = self.primary.name, dict(itertools.islice(judged.items(), 2))
        found = Examples(split.queries, split.qrels, self.passages, split.level)
        won, lost = most_different(*(judged.scores[metric] for judged in shown.values()))
        return report_page.SplitExamples(
            list(shown)[1],
            [found.example(query, shown, metric) for query in won],
            [found.example(query, shown, metric) for query in lost],
        )


def _as_json(comparison: Comparison) -> dict[str, Any]:
    return dataclasses.asdict(comparison) | {"verdict": comparison.verdict}


def flat_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The means of an `evaluation.json` under names that Kubeflow can show; baselines carry their name at the end."""
    measures = parse_measures(",".join(content["measures"]))
    return {
        _slug(f"{split}_{measure.key}" + ("" if system == RETRIEVER else f"_{system}")): values[measure.name]
        for split, results in content["splits"].items()
        for system, values in results["systems"].items()
        for measure in measures
    }


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower())
