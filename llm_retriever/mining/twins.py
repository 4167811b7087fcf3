"""Passages that say the same as a positive or as a query: they are no negatives, whatever their ids are."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Set

import numpy as np

from llm_retriever.collection import Passage


def text_key(text: str) -> int:
    """A 64-bit hash of a text, the same for texts that differ only in case and white space (in this process alone)."""
    return hash(" ".join(text.casefold().split()))


class Twins:
    """The text keys of positives, and of every passage that shares one with a positive or a query.

    Titles do not count: the same text under two titles answers the same queries. Reads the passages once and holds 16
    bytes of each while it does; what it keeps grows with the training queries, not with the corpus.

    Args:
        passages: The corpus.
        positives: Ids of all positives.
        queries: Texts of all training queries.
    """

    def __init__(self, passages: Iterable[Passage], positives: Set[str], queries: Iterable[str]) -> None:
        ids, texts = array("q"), array("q")
        for passage in passages:
            ids.append(hash(passage.id))
            texts.append(text_key(passage.text))
        all_ids, all_texts = np.frombuffer(ids, np.int64), np.frombuffer(texts, np.int64)
        of_positives = all_texts[np.isin(all_ids, _keys(hash(i) for i in positives))]
        wanted = np.union1d(of_positives, _keys(text_key(query) for query in queries))
        kept = np.isin(all_texts, wanted)
        self._keys = dict(zip(all_ids[kept].tolist(), all_texts[kept].tolist(), strict=True))

    def key(self, passage_id: str) -> int | None:
        """The text key of a passage that is a positive, or says the same as a positive or a query; else None."""
        return self._keys.get(hash(passage_id))


def _keys(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)
