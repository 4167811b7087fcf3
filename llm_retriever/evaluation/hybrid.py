"""Hybrid search as one more system: fuses the retriever's run and BM25's, with a weight that a held-out split chooses.

Both runs are as deep as the evaluation searches. The weight is that of the highest primary metric on `dev`, or on another split
that is named as one for choosing; where that split is not evaluated, it is searched for this alone. Never does a split that
is called otherwise choose: its figures are what people report. Without such a split both systems weigh the same.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llm_retriever.bm25.sparse import LUCENE_FOLDER
from llm_retriever.data.scripts import ENGLISH
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.evaluation.splits import SplitResults
from llm_retriever.evaluation.systems import BM25Runs, DenseSystem
from llm_retriever.indexing.hybrid.published import Published, check_lucene
from llm_retriever.metrics.conventions import BM25, FOR_CHOICES, HYBRID, RETRIEVER
from llm_retriever.metrics.fusion import Candidates, Fusion, Ranked, united
from llm_retriever.metrics.measures import score_queries
from llm_retriever.metrics.runs import read_ranked
from llm_retriever.settings import EvaluationSettings, is_unset

WEIGHTS = tuple(tenth / 10 for tenth in range(11))
QUERIES_AT_ONCE = 256
FAMILY = "hybrid search against all other systems × the primary metric × one split"
NOTHING = Ranked.of((), ())
CHOSEN_HERE = (
    "The fusion of hybrid search was chosen on these queries: its values here are a little better than on others."
)


def choices(settings: EvaluationSettings) -> list[Fusion]:
    """Fusions that the settings leave open, a convex one first where there is one."""
    weights = WEIGHTS if is_unset(settings.hybrid_weight) else (settings.hybrid_weight,)
    convex, reciprocal = [Fusion("convex", weight) for weight in weights], [Fusion("rrf")]
    return {"convex": convex, "rrf": reciprocal, "auto": convex + reciprocal}[settings.hybrid_fusion]


class Hybrid:
    """Chooses how to fuse, and adds hybrid search to benches.

    Args:
        bench: Bench of the run's own collection.
        runs: BM25's of that collection.
        scratch: Directory for runs of a split that only chooses.

    Attributes:
        fusion: As it was chosen; None as long as nothing was fused.

    Raises:
        InputError: Lucene's index beside the runs is damaged.
    """

    def __init__(self, bench: Bench, runs: BM25Runs, scratch: Path) -> None:
        self.bench, self._runs = bench, runs
        check_lucene(runs.directory / LUCENE_FOLDER, runs.lucene)
        self.fusion: Fusion | None = None
        self._choices = choices(bench.settings)
        self._values: list[float] = []
        self._query_length: int | None = None
        name = next((name for name in FOR_CHOICES if runs.file(name) is not None), "")
        self._chosen_on = name if len(self._choices) > 1 else ""
        evaluated = name in {split.name for split in bench.splits}
        is_apart = bool(self._chosen_on) and not evaluated
        self._apart = Bench(bench.settings, bench.corpus, scratch / "held-out", names=[name]) if is_apart else None

    def search(self, tuned: DenseSystem) -> None:
        """Searches the split that chooses, unless it is evaluated anyway."""
        self._query_length = tuned.query_length
        if self._apart is None:
            return
        (split,) = self._apart.splits
        self._apart.add_dense(RETRIEVER, tuned)
        self._apart.add_run(split, BM25, self._runs.run(split.name, split.depth) or {})
        self._apart.rest()

    def add(self, others: Iterable[Bench]) -> None:
        """Chooses the fusion, and adds the system to every split with both runs; they were judged.

        Args:
            others: Benches of further collections, which take the weight along.
        """
        benches = [bench for bench in (self.bench, *others) if any(BM25 in split.judged for split in bench.splits)]
        if not benches:
            return
        self.fusion = self._chosen()
        description = f"the retriever and BM25 as one ranking: {fusion_as_text(self.fusion)}"
        for bench in benches:
            fuse(bench, self.fusion, RETRIEVER, HYBRID, description)
        self.bench.notes.append(self._note(self.fusion))
        for split in self.bench.splits:
            if split.name == self._chosen_on and HYBRID in split.judged:
                split.notes.append(CHOSEN_HERE)

    def _chosen(self) -> Fusion:
        """Picks the best fusion on the split that chooses; of equal ones that which is nearest to equal weights."""
        if not self._chosen_on:
            first = self._choices[0]
            return Fusion() if len(self._choices) > 1 and is_unset(self.bench.settings.hybrid_weight) else first
        bench = self._apart or self.bench
        split = next(split for split in bench.splits if split.name == self._chosen_on)
        self._values = values(self._choices, bench, split)
        ranked = zip(self._values, self._choices, strict=True)
        return max(ranked, key=lambda pair: (pair[0], -abs(pair[1].weight - Fusion.weight)))[1]

    def _note(self, fusion: Fusion) -> str:
        if self._chosen_on:
            why = f"the best of {len(self._choices)} by {self.bench.primary.label} on {self._chosen_on}"
        elif len(self._choices) > 1:
            why = f"not chosen, because no split called {' or '.join(FOR_CHOICES)} has a BM25 run"
            if not set(FOR_CHOICES) & set(self.bench.corpus.splits):
                why += " (corpus_heldout_queries=500 makes one)"
        else:
            why = "as the settings say"
        return f"Hybrid search fuses the retriever and BM25 by {fusion_as_text(fusion)}: {why}."

    def content(self) -> dict[str, Any]:
        """Builds the part `hybrid` of `evaluation.json`; {} where nothing was fused."""
        if self.fusion is None:
            return {}
        measured = list(zip(self._choices, self._values, strict=False))
        curve = [[fusion.weight, value] for fusion, value in measured if fusion.kind == "convex"]
        reciprocal = next((value for fusion, value in measured if fusion.kind == "rrf"), None)
        facts = {"chosen_on": self._chosen_on, "metric": self.bench.primary.name, "family": FAMILY}
        return {HYBRID: {**self.fusion.as_json(), **facts, "curve": curve, "rrf": reciprocal}}

    def publish(self, directory: Path, card: str) -> None:
        """Writes the files of hybrid search with the retriever, where Lucene's index lies beside the runs.

        Args:
            directory: To make.
            card: Digest of the retriever's card.
        """
        if self.fusion is None or not self._runs.lucene:
            return
        searched = self._runs.parameters
        published = Published(
            fusion=self.fusion,
            card=card,
            collection=self.bench.corpus.fingerprint,
            depth=self.bench.settings.depth,
            query_length=self._query_length,
            bm25={name: searched[name] for name in ("k1", "b")},
            bm25_depth=searched["depth"],
            language=searched.get("language", ENGLISH),
            files=self._runs.lucene,
        )
        published.write(directory, self._runs.directory / LUCENE_FOLDER)


def fusion_as_text(fusion: Fusion) -> str:
    """Describes a fusion in a sentence."""
    if fusion.kind == "rrf":
        return "reciprocal rank fusion"
    return f"a convex combination with weight {fusion.weight:g} of the retriever"


def fuse(bench: Bench, fusion: Fusion, system: str, name: str, description: str) -> None:
    """Adds the fusion of a dense system with BM25 to every split that has both.

    Args:
        bench: Bench with the runs of both.
        fusion: How.
        system: The dense one.
        name: Name of the new system.
        description: Description of the new system.
    """
    facts = {"description": description, "parameters": fusion.as_json()}
    for split in bench.splits:
        if {system, BM25} <= split.judged.keys():
            candidates = _candidates(bench, split, system)
            run = {query: fusion.best(each, bench.settings.depth) for query, each in candidates}
            bench.add_run(split, name, run, **facts)


def values(fusions: Sequence[Fusion], bench: Bench, split: SplitResults) -> list[float]:
    """Mean of the primary metric of every fusion on a split, in bounded memory."""
    depth, levels = bench.primary.cutoff or bench.settings.depth, (split.level, split.highest)
    per_query: list[list[float]] = [[] for _ in fusions]
    waiting = _candidates(bench, split, RETRIEVER)
    while part := dict(itertools.islice(waiting, QUERIES_AT_ONCE)):
        qrels = {query: split.qrels[query] for query in part}
        for fusion, scores_so_far in zip(fusions, per_query, strict=True):
            run = {query: fusion.best(each, depth) for query, each in part.items()}
            scores = score_queries([bench.primary], qrels, run, relevance_level=levels[0], highest_level=levels[1])
            scores_so_far += scores[bench.primary.name].values()
    return [math.fsum(scores) / len(scores) for scores in per_query]


def _candidates(bench: Bench, split: SplitResults, system: str) -> Iterator[tuple[str, Candidates]]:
    """Yields the passages of a dense system and of BM25, query by query."""
    dense, lexical = (read_ranked(bench.runs / split.name / f"{name}.trec") for name in (system, BM25))
    for query in split.qrels:
        yield query, united(dense.get(query, NOTHING), lexical.get(query, NOTHING))
