"""Finds passages whose text is that of a positive or of a query, or nearly: no negatives, whatever their ids are."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Set

import numpy as np

from llm_retriever.data.collection import Passage, PassageLookup
from llm_retriever.data.sources.near_duplicates import Resembling

SHINGLE_WORDS = 3


def text_key(text: str) -> int:
    """Hashes a text to 64 bits, alike for texts that differ only in case and white space (in this process alone)."""
    return hash(" ".join(text.casefold().split()))


class EqualTexts:
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
        kept_texts = np.union1d(of_positives, _keys(text_key(query) for query in queries))
        kept = np.isin(all_texts, kept_texts)
        self._keys = dict(zip(all_ids[kept].tolist(), all_texts[kept].tolist(), strict=True))

    def key(self, passage_id: str) -> int | None:
        """Returns the text key of a passage that is a positive, or has the text of a positive or a query; else None."""
        return self._keys.get(hash(passage_id))


def _keys(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)


class NearCopies:
    """Recognises passages whose words stand in nearly the same order as those of a positive (Broder 1997: resemblance).

    Args:
        lookup: Reads passages; titles do not count. None = no text counts as nearly the same.
        similarity: Jaccard similarity of the word 3-grams from which two texts do.
    """

    def __init__(self, lookup: PassageLookup | None, similarity: float) -> None:
        self._lookup, self._similarity = lookup, similarity

    def of(self, positives: Iterable[str]) -> Callable[[str], bool]:
        """Returns a test of passage ids against these positives; it reads passages when asked, and the positives once."""
        lookup = self._lookup
        if lookup is None:
            return lambda passage: False
        texts = [lookup[passage].text for passage in sorted(positives) if passage in lookup]
        known = Resembling(texts, shingle=SHINGLE_WORDS, similarity=self._similarity)
        return lambda passage: lookup[passage].text in known


class Sample:
    """Draws a fixed number of passages from a stream, each with the same chance (Vitter 1985, algorithm R).

    Args:
        size: How many are kept; of fewer, all.
        seed: Decides the draw.

    Attributes:
        ids: Ids of those kept so far.
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._draw = size, random.Random(f"{seed}:sample")  # noqa: S311 - reproducible, no secret
        self.ids: list[str] = []

    def watching(self, passages: Iterable[Passage]) -> Iterator[Passage]:
        """Passes the passages through, and samples them as they stream by."""
        if not self._size:
            yield from passages
            return
        for number, passage in enumerate(passages):
            if len(self.ids) < self._size:
                self.ids.append(passage.id)
            elif (place := self._draw.randrange(number + 1)) < self._size:
                self.ids[place] = passage.id
            yield passage
