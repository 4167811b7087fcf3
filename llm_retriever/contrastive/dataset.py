"""Groups of one query, one positive and g-1 hard negatives, drawn by seed and epoch, and their batches of token ids."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_retriever.data.collection import PassageLookup
from llm_retriever.data.lines import JsonItems
from llm_retriever.data.training_set import EXAMPLES_FILE
from llm_retriever.methods import Method
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.pooling import POOLINGS
from llm_retriever.models.prompts import PromptEncoder, passage_text

CACHED_PASSAGES = 100_000


@dataclass(frozen=True)
class Group:
    """A training query and the ids of its g passages, the positive first.

    Attributes:
        query, passages: The query's text and the ids.
        positives: Ids of all positives of the query.
        teacher: A teacher's score of each of `passages`; None = there is none for one of them.
    """

    query: str
    passages: tuple[str, ...]
    positives: tuple[str, ...] = ()
    teacher: tuple[float, ...] | None = None


class ContrastiveDataset:
    """The training set as groups; every draw follows from (item, seed, epoch), so a resumed run sees the same ones.

    Positive and negatives rotate with the epoch as in Tevatron and the released LLM-QL code (there `hash(item + seed)`,
    which is the sum itself). Lines are read when they are needed: memory is 8 bytes an example.

    Args:
        directory: A training set whose lines have been checked.
        passages: g, passages per query.
        seed: Seed of the draws.
    """

    def __init__(self, directory: Path, passages: int, seed: int) -> None:
        self.path, self.passages, self.seed, self.epoch = Path(directory) / EXAMPLES_FILE, passages, seed, 0
        self._rows = JsonItems(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Switches to the draws of an epoch, counted from 0."""
        self.epoch = epoch

    def __getitem__(self, item: int) -> Group:
        row = self._rows[item]
        positives = [positive["id"] for positive in row["positives"]]
        positive = positives[(item + self.seed + self.epoch) % len(positives)]
        passages = (positive, *self._negatives(item, row, positives))
        scores = {entry["id"]: entry.get("score_teacher") for entry in (*row["negatives"], *row["positives"])}
        teacher = tuple(scores[passage] for passage in passages if scores.get(passage) is not None)
        return Group(row["query"], passages, tuple(positives), teacher if len(teacher) == len(passages) else None)

    def sources(self) -> Iterator[str]:
        """Data set of each example, in order; "" where the training set does not say."""
        return (row.get("source", "") for row in self._rows)

    def _negatives(self, item: int, row: dict[str, Any], positives: Sequence[str]) -> list[str]:
        ids, needed = [negative["id"] for negative in row["negatives"]], self.passages - 1
        if not ids:
            return self._borrowed(item, positives, needed)
        if len(ids) < needed:
            return random.Random(f"{item + self.seed} {self.epoch}").choices(ids, k=needed)  # noqa: S311
        # The same order in every epoch, so that the window moves on to negatives that were not seen yet.
        random.Random(item + self.seed).shuffle(ids)  # noqa: S311
        start = self.epoch * needed % len(ids)
        return (ids + ids)[start : start + needed]

    def _borrowed(self, item: int, positives: Sequence[str], needed: int) -> list[str]:
        """Draws positives of other queries, for a query that has no hard negatives."""
        draw = random.Random(f"{item + self.seed} {self.epoch}")  # noqa: S311
        # More than needed, because some are positives of this query too.
        others = [self._rows[draw.randrange(len(self))]["positives"][0]["id"] for _ in range(8 * needed)]
        usable = [other for other in others if other not in positives] or others
        return (usable * needed)[:needed]


class GroupCollator:
    """Puts groups into a method's prompts and pads them into one batch of queries and one of passages.

    Padding is on the right whatever the card says: under causal attention real tokens never see it, so no mask is needed;
    under bidirectional attention the mask hides it. The vectors are those of left padding.

    Args:
        method: Prompts, lengths, embedding tokens.
        tokenizer: The backbone's.
        lookup: The collection's passages.
    """

    def __init__(self, method: Method, tokenizer: Any, lookup: PassageLookup) -> None:
        self.queries = PromptEncoder(tokenizer, method.query, method.query_length, setting="query_length")
        self.passages = PromptEncoder(tokenizer, method.passage, method.passage_length, setting="passage_length")
        self.joiner, self.lookup, self.pooling = method.title_joiner, lookup, POOLINGS[method.pooling]
        self.pad = pad_id(tokenizer)
        self._cache: dict[str, np.ndarray] = {}

    def __call__(self, groups: Sequence[Group]) -> dict[str, Tensor]:
        """Makes the batch.

        Returns:
            `query_ids`, `query_mask` int64 [B, width]; `passage_ids`, `passage_mask` int64 [B·g, width], where row i·g
            is the positive of query i; where the pooling reads only a part, `query_pooled` int64 [B] and
            `passage_pooled` int64 [B·g], so many last tokens. `passage_numbers` int64 [B·g] and
            `positive_numbers` int64 [B, most positives of a query], a number for each passage's id, filled up with -1;
            `teacher` float32 [B, g], where all groups have a teacher's scores.
        """
        queries = self._side("query", self.queries, self.queries.batch([group.query for group in groups]))
        passages = self._passage_ids([p for group in groups for p in group.passages])
        return queries | self._side("passage", self.passages, passages) | _known(groups)

    def _side(self, name: str, encoder: PromptEncoder, rows: list[list[int]]) -> dict[str, Tensor]:
        batch = padded(rows, self.pad, "right")
        side = {f"{name}_ids": batch["input_ids"], f"{name}_mask": batch["attention_mask"]}
        if self.pooling.counted:
            side[f"{name}_pooled"] = torch.tensor([encoder.pooled(row, self.pooling.reads) for row in rows])
        return side

    def _passage_ids(self, ids: Sequence[str]) -> list[list[int]]:
        missing = [passage for passage in dict.fromkeys(ids) if passage not in self._cache]
        if len(self._cache) + len(missing) > CACHED_PASSAGES:
            self._cache.clear()
            missing = list(dict.fromkeys(ids))
        texts = [passage_text(p.title, p.text, self.joiner) for p in map(self.lookup.__getitem__, missing)]
        for passage, tokens in zip(missing, self.passages.batch(texts), strict=True):
            self._cache[passage] = np.asarray(tokens, dtype=np.int32)
        return [self._cache[passage].tolist() for passage in ids]


def _known(groups: Sequence[Group]) -> dict[str, Tensor]:
    """Facts of the passages beside their texts."""
    most = max(len(group.positives) for group in groups)
    positives = [[*map(number, group.positives), *[-1] * (most - len(group.positives))] for group in groups]
    known = {
        "passage_numbers": torch.tensor([number(passage) for group in groups for passage in group.passages]),
        "positive_numbers": torch.tensor(positives, dtype=torch.int64).view(len(groups), most),
    }
    teacher = [group.teacher for group in groups if group.teacher is not None]
    return known | ({"teacher": torch.tensor(teacher)} if len(teacher) == len(groups) else {})


def number(identifier: str) -> int:
    """Hashes an id to 63 bits, alike in every process."""
    return int.from_bytes(hashlib.blake2b(identifier.encode(), digest_size=8).digest()) >> 1
