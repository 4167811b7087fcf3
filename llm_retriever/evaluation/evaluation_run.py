"""A bench: the splits and measures of one collection, and the results of the systems on them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_retriever.data.collection import Collection, PassageLookup
from llm_retriever.errors import InputError
from llm_retriever.evaluation.splits import SplitResults, chosen_measures, chosen_splits, open_split
from llm_retriever.evaluation.systems import DenseSystem, without_own_passages
from llm_retriever.metrics.conventions import BM25, HYBRID, HYBRIDS, RETRIEVER, TRAINING_SPLIT
from llm_retriever.metrics.measures import means
from llm_retriever.metrics.runs import Run, line_of, write_run
from llm_retriever.metrics.significance import ON_TIES, Comparison, compare, wins_and_losses
from llm_retriever.reporting import report as report_page
from llm_retriever.reporting.charts import signed
from llm_retriever.reporting.examples import Examples, judge, most_different
from llm_retriever.settings import EvaluationSettings

MANY_TIES = 0.5
TRAINED_ON = "The retriever was trained on these queries: the values say how well it fits, not how good it is."


class Bench:
    """The splits of a collection and the measures, and the results of the systems on them.

    Args:
        settings: What to measure, and on what.
        corpus: The collection.
        runs: Directory that `<split>/<system>.trec` are written to.
        zero_shot: Name of a collection that the retriever was not trained on; its splits are called `<name>/<split>`.
        part: Part of such a collection, as CQADupStack has forums: `<name>/<part>/<split>`.
        names: Splits of the collection; None = those of the settings.

    Attributes:
        splits: Splits to measure on, with the systems' results.
        systems: Facts about a system for `evaluation.json`, by its name: `description`, and more where there is.
        notes: Sentences for people on what was left out, and why.

    Raises:
        InputError: A setting cannot be used with this collection.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        corpus: Collection,
        runs: Path,
        *,
        zero_shot: str = "",
        part: str = "",
        names: Sequence[str] | None = None,
    ) -> None:
        self.settings, self.corpus, self.runs, self.zero_shot = settings, corpus, runs, zero_shot
        self.measures, self.primary, notes = chosen_measures(settings)
        levels = [settings.relevance_level, *(measure.level for measure in self.measures)]
        names = chosen_splits(settings, corpus) if names is None else names
        self.splits = [open_split(corpus, name, levels, settings.depth) for name in names]
        for split in self.splits:
            split.own = frozenset(query for query in split.own if query in self.passages)
            split.depth += bool(split.own)
            if split.name == TRAINING_SPLIT and not zero_shot:
                split.notes.append(TRAINED_ON)
            split.name = split_name(zero_shot, part, split.name)
        self.systems: dict[str, dict[str, Any]] = {}
        self.notes = notes

    @functools.cached_property
    def passages(self) -> PassageLookup:
        """The corpus by passage id."""
        return self.corpus.lookup()

    def rest(self) -> None:
        """Frees `passages`, which are read anew when needed: of many benches only one works at a time."""
        self.__dict__.pop("passages", None)

    def add_dense(self, name: str, system: DenseSystem, **facts: Any) -> None:
        """Searches every split with a dense system.

        Args:
            name: Name of the system: the file name of its runs, so without `/` and white space.
            system: Searches.
            **facts: Facts about it: `description`, and more.
        """
        for split in self.splits:
            self.add_run(split, name, system.run(split.queries, split.depth), **facts)

    def add_run(self, split: SplitResults, name: str, run: Run, **facts: Any) -> None:
        """Judges a system's run of a split, and keeps it; arguments are those of `add_dense`.

        Of `run`, a passage with the query's own id is left out where the collection asks for it, and what is beyond the depth.
        """
        split.left_out[name] = sum(query in run.get(query, ()) for query in split.own)
        run = without_own_passages(run, self.settings.depth, split.own)
        split.notes += _nothing_found(name, split, run)
        rows = ((query, list(ranking.items())) for query, ranking in run.items())
        write_run(self.runs / split.name / f"{name}.trec", rows, name)
        split.judged[name] = judge(self.measures, split.qrels, run, split.level, split.highest)
        self.systems.setdefault(name, dict(facts))

    def check_passages(self, split: SplitResults, name: str, file: str | Path) -> None:
        """Raises InputError where the first passages of a run are not all in the collection.

        Raises:
            InputError: One is not; `file` is where the run comes from.
        """
        found = ((query, passage) for query, top in split.judged[name].top.items() for passage in top)
        for query, passage in found:
            if passage not in self.passages:
                raise InputError(
                    f"passage {passage!r} is not in the collection",
                    file=file,
                    line=line_of(file, query, passage),
                    hint="make the run anew from this collection",
                )

    def results(self) -> dict[str, dict[str, Any]]:
        """Builds the measured part of `evaluation.json`: its `splits`."""
        return {split.name: self._split_results(split) for split in self.splits}

    def _split_results(self, split: SplitResults) -> dict[str, Any]:
        all_judged = split.in_order()
        per_query = {name: judged.scores[self.primary.name] for name, judged in all_judged.items()}
        baselines = {name: values for name, values in per_query.items() if name not in (RETRIEVER, *HYBRIDS)}
        compared = compare(self.primary.name, per_query[RETRIEVER], baselines)
        hybrid = self._hybrid(per_query)
        return {
            "collection": self.corpus.fingerprint,
            **({"zero_shot": self.zero_shot} if self.zero_shot else {}),
            "queries": len(split.qrels),
            "judgments": sum(len(grades) for grades in split.qrels.values()),
            "relevance_level": split.level,
            "systems": {name: means(judged.scores) for name, judged in all_judged.items()},
            "comparisons": [comparison.as_json() for comparison in compared],
            **({"hybrid_comparisons": [comparison.as_json() for comparison in hybrid]} if hybrid else {}),
            "wins_and_losses": {
                name: wins_and_losses(per_query[RETRIEVER], values) for name, values in baselines.items()
            },
            "per_query": per_query,
            **({"own_passages": {"queries": len(split.own), "left_out": split.left_out}} if split.own else {}),
            "notes": [*split.notes, *_own_passages(split), *self._ties(compared), *map(self._harm, harmful(hybrid))],
        }

    def _hybrid(self, per_query: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
        """Compares hybrid search with every other system, the retriever among them; [] where it was not evaluated."""
        if HYBRID not in per_query:
            return []
        others = {name: values for name, values in per_query.items() if name != HYBRID}
        return compare(self.primary.name, per_query[HYBRID], others)

    def _harm(self, comparison: Comparison) -> str:
        alone = "the retriever" if comparison.baseline == RETRIEVER else comparison.baseline
        return (
            f"Hybrid search harms here: its {self.primary.label} is significantly lower than that of {alone} alone "
            f"({signed(comparison.mean_difference)})."
        )

    def _ties(self, compared: list[Comparison]) -> list[str]:
        """Notes on a metric that has few values."""
        tied = [c for c in compared if c.tie_share >= MANY_TIES and self.primary.kind in ("mrr", "success")]
        return [
            f"{self.primary.label} is the same for the retriever and {c.baseline} on {c.ties:,} of {c.queries:,} queries; "
            f"{ON_TIES}"
            for c in tied
        ]

    def examples(self, split: SplitResults) -> report_page.SplitExamples:
        """Picks queries won and lost against the first baseline."""
        judged = {name: examples for name, examples in split.in_order().items() if name not in HYBRIDS}
        if len(judged) < 2:
            return report_page.SplitExamples(against="")
        metric, shown = self.primary.name, dict(itertools.islice(judged.items(), 2))
        examples = Examples(split.queries, split.qrels, self.passages, split.level)
        won, lost = most_different(*(judged.scores[metric] for judged in shown.values()))
        return report_page.SplitExamples(
            list(shown)[1],
            [examples.example(query, shown, metric) for query in won],
            [examples.example(query, shown, metric) for query in lost],
        )


def harmful(compared: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons of hybrid search in which one of its two parts is significantly better alone."""
    parts = [one for one in compared if one.baseline in (RETRIEVER, BM25)]
    return [one for one in parts if one.verdict == "significant" and one.mean_difference < 0]


def _nothing_found(name: str, split: SplitResults, run: Run) -> list[str]:
    """Notes how many queries a system found nothing for, as where words of another language are looked up."""
    missed = sum(not run.get(query) for query in split.qrels)
    if not missed:
        return []
    return [f"{name} has no passage for {missed:,} of {len(split.qrels):,} queries, which count as 0."]


def _own_passages(split: SplitResults) -> list[str]:
    """Notes how many passages of the queries' own ids were left out, by the systems that returned any here.

    The lexical runs of `mine_negatives` come without them.
    """
    if not split.own:
        return []
    counted = ", ".join(f"{number:,} of {name}" for name, number in split.left_out.items() if number)
    return [
        f"{len(split.own):,} queries have the id of a passage that is not judged relevant to them. It was left out of their "
        f"rankings, as the collection says (own_passages of prepare_corpus): {counted or 'none was returned'}."
    ]


def split_name(zero_shot: str, part: str, split: str) -> str:
    """Name of a split: that of a zero-shot collection has the collection and its part in front."""
    return "/".join(filter(None, (zero_shot, part, split)))
