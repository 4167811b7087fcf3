"""Counts texts that are longer than what the retriever reads: what is behind the cut has no part in any vector."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation.splits import SplitResults
from llm_retriever.evaluation.systems import DenseSystem

SAMPLE = 1000
"""So many passages, evenly over the corpus, and so many queries of a split are tokenised once more; of fewer, all."""
Tokenise = Callable[..., list[list[int]]]


def note_cuts(tuned: DenseSystem, corpus: Collection, splits: Sequence[SplitResults]) -> list[str]:
    """Notes cut passages; cut queries are noted at their splits.

    Args:
        tuned: The retriever, before it is released.
        corpus: Its collection.
        splits: What is measured on.
    """
    encoder, length = tuned.encoder, tuned.query_length or tuned.encoder.query_length
    for split in splits:
        texts = list(itertools.islice(split.queries.values(), SAMPLE))
        cut = _cut(encoder.tokenise_queries, texts, length)
        split.notes += _sentence(cut, len(texts), len(split.queries), "queries", length)
    step = max(1, corpus.passage_count // SAMPLE)
    chosen = [range(at, at + 1) for at in range(0, corpus.passage_count, step)][:SAMPLE]
    passages = list(itertools.chain.from_iterable(corpus.spans(chosen)))
    length = int(tuned.index.manifest.settings["passage_length"])
    cut = _cut(encoder.tokenise_passages, passages, length)
    return _sentence(cut, len(passages), corpus.passage_count, "passages", length)


def _cut(tokenise: Tokenise, texts: Sequence[object], length: int) -> int:
    """Counts texts that have more tokens than there is room for."""
    rows = tokenise(texts, length=length)
    try:
        longer = tokenise(texts, length=2 * length)
    except InputError:  # The model has no positions for so many.
        return sum(len(row) >= length for row in rows)
    return sum(len(row) < len(more) for row, more in zip(rows, longer, strict=True))


def _sentence(cut: int, looked_at: int, number: int, kind: str, length: int) -> list[str]:
    if not cut:
        return []
    of = f"{looked_at:,} {kind}" if looked_at == number else f"{looked_at:,} {kind} that were looked at"
    return [f"{cut:,} of {of} are longer than {length:,} tokens; what is behind them was not read."]
