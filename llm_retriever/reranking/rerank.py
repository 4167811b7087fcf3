"""Query-likelihood re-ranking: sorts a first stage's best passages by log P(query | passage).

Source: Zhang et al. (LLM-QL), Table 8; the mixture with the first stage is that of Zhuang et al. (llm-qlm).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_retriever.encoders.retriever import MODEL_DIRECTORY
from llm_retriever.errors import InputError
from llm_retriever.metrics.fusion import min_max
from llm_retriever.metrics.runs import Run, read_run
from llm_retriever.models.card import RetrieverCard
from llm_retriever.progress import Progress
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt, lineage_within, load_language_model
from llm_retriever.settings import UNSET_NUMBER, EvaluationSettings

if TYPE_CHECKING:
    from llm_retriever.evaluation.evaluation_run import Bench
    from llm_retriever.evaluation.optional_analyses import Paths

PAIRS_AT_ONCE = 65_536
"""Pairs whose token ids are held in memory at a time, so that the length of a run does not matter."""
BLOCKS = {"on": (True,), "off": (False,), "both": (True, False)}


def system_name(first: str, attention_block: bool) -> str:
    """Name of a re-ranked first stage in the tables; its runs are files of that name."""
    return f"{first}+QL" if attention_block else f"{first}+QL-no-block"


def interpolated(first: Mapping[str, float], second: Mapping[str, float], weight: float) -> dict[str, float]:
    """Mixes weight · first + (1 - weight) · second, each scaled to [0, 1] over the passages of one query.

    Args:
        first: Scores of the first stage, for the passages of `second`.
        second: Scores of the language model.
        weight: Weight of the first stage; 0.2 in llm-qlm.
    """
    one, two = (min_max(np.array([scores[name] for name in second])) for scores in (first, second))
    return dict(zip(second, (weight * one + (1 - weight) * two).tolist(), strict=True))


def reordered(first: Mapping[str, float], scores: Mapping[str, float]) -> dict[str, float]:
    """Sorts the passages of `scores`, and keeps the others behind them as the first stage has them."""
    sorted_scores = dict(sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True))
    floor = min(sorted_scores.values(), default=0.0)
    rest = [name for name in first if name not in sorted_scores]
    return sorted_scores | {name: floor - place for place, name in enumerate(rest, start=1)}


@dataclasses.dataclass(frozen=True)
class Reranker:
    """Re-ranks runs with a language model.

    Args:
        scorer: Gives the likelihoods.
        depth: Passages per query that are re-ranked; those behind them stay behind them.
        weight: Weight of the first stage in the mixture; negative = the language model alone.
    """

    scorer: QueryLikelihood
    depth: int
    weight: float = UNSET_NUMBER

    def run(self, first: Run, queries: Mapping[str, str], *, attention_block: bool, title: str = "") -> Run:
        """Returns the re-ranked run.

        Args:
            first: Score by passage id, best first, by query id.
            queries: Text by query id.
            attention_block: Whether the query sees the passage through [E] alone.
            title: Title of the progress on standard error; empty = none.

        Raises:
            InputError: A score is not finite, or a batch does not fit into memory.
        """
        candidates = {query: list(ranking)[: self.depth] for query, ranking in first.items()}
        reranked: Run = {}
        with Progress(title, sum(map(len, candidates.values())), "pairs", quiet=not title) as progress:
            for chunk in _chunks(candidates):
                pairs = [(queries[query], passage) for query, passages in chunk.items() for passage in passages]
                scores = iter(self.scorer.scores(pairs, attention_block=attention_block, report=_counting(progress)))
                for query, passages in chunk.items():
                    reranked[query] = self._ranked(first[query], {p: next(scores) for p in passages})
        return reranked

    def _ranked(self, first: Mapping[str, float], scores: dict[str, float]) -> dict[str, float]:
        return reordered(first, scores if self.weight < 0 else interpolated(first, scores, self.weight))


def _counting(progress: Progress) -> Callable[[int], None]:
    return lambda pairs: progress.update(pairs)


def _chunks(candidates: Mapping[str, list[str]]) -> Iterator[dict[str, list[str]]]:
    """Groups queries with their passages into about `PAIRS_AT_ONCE` pairs, at least one query."""
    chunk: dict[str, list[str]] = {}
    pairs = 0
    for query, passages in candidates.items():
        if chunk and pairs + len(passages) > PAIRS_AT_ONCE:
            yield chunk
            chunk, pairs = {}, 0
        chunk[query] = passages
        pairs += len(passages)
    if chunk:
        yield chunk


def check(settings: EvaluationSettings, card: RetrieverCard, paths: Paths) -> None:
    """Raises InputError where the language model is missing or is another one."""
    if settings.rerank_depth:
        _language_model(settings, card, paths)


def extra(settings: EvaluationSettings, bench: Bench, card: RetrieverCard, paths: Paths) -> dict[str, Any]:
    """Re-ranks the runs of the first stage on every split, as systems of their own.

    Returns:
        `rerank`: what was done, and what it cost.

    Raises:
        InputError: The adapted backbone is missing, is not the one that the retriever was tuned from, or lacks a token.
    """
    if not settings.rerank_depth:
        return {}
    directory, template = _language_model(settings, card, paths)
    scorer = _scorer(settings, directory, template, bench)
    reranker = Reranker(scorer, settings.rerank_depth, settings.rerank_interpolation)
    started, pairs = time.monotonic(), 0
    for split in bench.splits:
        path = bench.runs / split.name / f"{settings.rerank_from}.trec"
        first = read_run(path) if path.exists() else {}
        if not first:
            split.notes.append(f"There is no {settings.rerank_from} run of this split, so there is nothing to re-rank.")
        for block in BLOCKS[settings.rerank_attention_block] if first else ():
            name = system_name(settings.rerank_from, block)
            run = reranker.run(first, split.queries, attention_block=block, title=f"re-rank {split.name}")
            bench.add_run(split, name, run, description=_description(settings, template, block))
            pairs += sum(min(len(ranking), settings.rerank_depth) for ranking in first.values())
    return {"rerank": _account(settings, template, scorer, pairs, time.monotonic() - started)}


def _language_model(settings: EvaluationSettings, card: RetrieverCard, paths: Paths) -> tuple[Path, QueryPrompt]:
    if settings.rerank_model == "tuned":
        return paths.retriever / MODEL_DIRECTORY, QueryPrompt.of(card.lineage)
    if paths.adapted is None:
        raise InputError(
            "there is no adapted backbone to re-rank with", field="adapted", hint="give the output of adapt_backbone"
        )
    return paths.adapted, QueryPrompt.of(lineage_within(paths.adapted, card))


def _scorer(settings: EvaluationSettings, directory: Path, template: QueryPrompt, bench: Bench) -> QueryLikelihood:
    model, tokenizer = load_language_model(directory, precision=settings.precision)
    return QueryLikelihood(model, tokenizer, template, bench.passages, settings.rerank_end_of_sequence)


def _description(settings: EvaluationSettings, template: QueryPrompt, block: bool) -> str:
    model = "adapted backbone" if settings.rerank_model == "adapted" else "tuned model"
    trained = "" if template.is_trained else ", which was never trained to generate queries"
    seen = "the query sees the passage through [E] alone" if block else "the query sees the whole passage"
    weight = settings.rerank_interpolation
    mixed = "" if weight < 0 else f"; mixed with weight {weight:g} of {settings.rerank_from}"
    return (
        f"the first {settings.rerank_depth:,} passages of {settings.rerank_from}, re-ranked by the likelihood of the query "
        f"under the {model}{trained}; {seen}{mixed}"
    )


def _account(
    settings: EvaluationSettings, template: QueryPrompt, scorer: QueryLikelihood, pairs: int, seconds: float
) -> dict[str, Any]:
    return {
        "from": settings.rerank_from,
        "model": settings.rerank_model,
        "is_trained": template.is_trained,
        "depth": settings.rerank_depth,
        "attention_block": settings.rerank_attention_block,
        "interpolation": settings.rerank_interpolation,
        "end_of_sequence": settings.rerank_end_of_sequence,
        "pairs": pairs,
        "tokens": scorer.tokens,
        "seconds": seconds,
        "device": str(scorer.model.device),
    }
