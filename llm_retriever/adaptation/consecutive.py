"""Pairs of consecutive texts: neighbours in an article where the collection knows its articles, else parts of a passage."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

from llm_retriever.data.collection import ARTICLES_FILE, CORPUS_FILE, Collection
from llm_retriever.data.lines import JsonItems
from llm_retriever.data.scripts import is_unspaced
from llm_retriever.errors import InputError
from llm_retriever.models.prompts import passage_text
from llm_retriever.training.train import TrainingDataset

SHORTEST = 16
"""Characters of the shorter part of a passage."""
SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s+|[。！？][”’」』）]*\s*")
SPACE = re.compile(r"\s+")


class TextPair(NamedTuple):
    """A text, and the text that follows it."""

    text: str
    following: str


def consecutive_texts(collection: Collection, seed: int) -> TrainingDataset:
    """Returns the pairs of consecutive texts of a collection.

    Raises:
        InputError: It has none.
    """
    dataset: TrainingDataset = (
        NeighbourDataset(collection) if collection.has_articles else PartsDataset(collection, seed)
    )
    if not len(dataset):
        raise InputError(
            f"no passage has two parts of {SHORTEST} characters",
            file=collection.directory / CORPUS_FILE,
            hint="use longer passages or another adaptation",
        )
    return dataset


class PartsDataset:
    """Every passage that is long enough, as two consecutive parts.

    Which sentence boundary parts it follows from (seed, item, epoch). Only boundaries that leave at least a quarter of the
    text, and 16 characters, on either side are used; a passage without one is parted at the space nearest its middle. The
    title goes with the first part. Parts are as long as the passage makes them: of whole documents, which are cut later, the
    start is used alone. Lines are read when they are needed: memory is 12 bytes a passage.

    Args:
        collection: Where the passages are.
        seed: Of the draws.
    """

    def __init__(self, collection: Collection, seed: int) -> None:
        self.seed, self.epoch = seed, 0
        self._rows = JsonItems(collection.directory / CORPUS_FILE, lambda row: bool(boundaries(row["text"])))

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Switches to the draws of an epoch, counted from 0."""
        self.epoch = epoch

    def __getitem__(self, item: int) -> TextPair:
        row = self._rows[item]
        text: str = row["text"]
        place = random.Random(f"{self.seed} {item} {self.epoch}").choice(boundaries(text))  # noqa: S311
        return TextPair(passage_text(row["title"], text[:place].rstrip()), text[place:].lstrip())


def boundaries(text: str) -> list[int]:
    """Places where a text may be split: ends of sentences, or else the space nearest its middle; [] if it is too short.

    Where no spaces are written, the middle itself.
    """
    margin = max(SHORTEST, len(text) // 4)
    ends = [m.end() for m in SENTENCE_END.finditer(text) if _leaves(text, m.end(), margin)]
    if ends:
        return ends
    middle = len(text) / 2
    spaces = [m.end() for m in SPACE.finditer(text) if _leaves(text, m.end(), SHORTEST)]
    if not spaces and is_unspaced(text) and _leaves(text, int(middle), SHORTEST):
        return [int(middle)]
    return [min(spaces, key=lambda place: abs(place - middle))] if spaces else []


def _leaves(text: str, place: int, margin: int) -> bool:
    """Whether both sides of a place in a text have `margin` characters; the space before it counts for neither."""
    return place - 1 >= margin and len(text) - place >= margin


class NeighbourDataset:
    """Every passage of an article with the one that follows it there.

    The text is worded with its title, what follows without. Memory is 12 bytes a pair, and the look-up of the passages.

    Args:
        collection: Where passages and articles are; it has articles.
    """

    def __init__(self, collection: Collection) -> None:
        self._rows = JsonItems(collection.directory / ARTICLES_FILE, lambda row: len(row["passages"]) - 1)
        self._lookup = collection.lookup()

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> TextPair:
        ids, first = self._rows[item]["passages"], self._rows.number(item)
        one, two = self._lookup[ids[first]], self._lookup[ids[first + 1]]
        return TextPair(passage_text(one.title, one.text), two.text or two.title)
