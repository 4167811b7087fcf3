"""LLM-QL stage one: the model learns to generate the training query from its passage, through the embedding token alone.

One row is the document part (prompt and partly hidden passage, one string), the embedding tokens [E], and the query part (query
and end-of-sequence, another string). The loss is the query's negative log-likelihood.

Source: Zhang et al. (LLM-QL), Eq. 6 (attention block) and Eq. 8 (loss).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.data.collection import Collection, PassageLookup
from llm_retriever.data.lines import JsonItems
from llm_retriever.data.scripts import is_unspaced
from llm_retriever.data.training_set import EXAMPLES_FILE
from llm_retriever.errors import InputError
from llm_retriever.methods import QueryLikelihoodRecipe
from llm_retriever.models import masks
from llm_retriever.models.batches import padded
from llm_retriever.models.prompts import PromptEncoder, passage_text, plain_ids, symbol_ids

HIDDEN = "_"
"""What a hidden word of the passage is replaced by."""

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A training query, one of its positives, and the seed of what is hidden from the passage this time."""

    query: str
    passage: str
    draw: str


class PairDataset:
    """The training set as one example for every query and positive of it, or for every query with a positive drawn anew.

    What is hidden follows from (seed, query id, passage id, epoch): every epoch hides something else, and a resumed run
    hides what the uninterrupted one would have hidden. Lines are read when they are needed: memory is 12 bytes a pair.

    Args:
        directory: A training set whose lines have been checked.
        seed: Of the draws.
        one_positive: Whether a query is one example an epoch.
    """

    def __init__(self, directory: Path, seed: int, one_positive: bool = False) -> None:
        self.one_positive, self.seed, self.epoch = one_positive, seed, 0
        count = None if one_positive else lambda row: len(row["positives"])
        self._rows = JsonItems(Path(directory) / EXAMPLES_FILE, count)

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Switches to the draws of an epoch, counted from 0."""
        self.epoch = epoch

    def __getitem__(self, item: int) -> Pair:
        row = self._rows[item]
        if self.one_positive:
            positive = random.Random(f"{self.seed} {row['query_id']} {self.epoch}").choice(row["positives"])  # noqa: S311
        else:
            positive = row["positives"][self._rows.number(item)]
        passage = positive["id"]
        return Pair(row["query"], passage, f"{self.seed} {row['query_id']} {passage} {self.epoch}")


class PairCollator:
    """Puts pairs into rows of ids, with the place of [E] and the tokens to predict; both come from lengths alone.

    Args:
        recipe: Prompt, lengths, corruption, and what the loss is on.
        embedding_tokens: Of the method that the model will be tuned for; `eos` is the end-of-sequence token.
        tokenizer: The backbone's.
        lookup: The collection's passages.
        padding_side: `left` or `right`; the loss is the same.

    Raises:
        InputError: The lengths leave no room for a text, or the tokenizer lacks an embedding token.
    """

    def __init__(
        self,
        recipe: QueryLikelihoodRecipe,
        embedding_tokens: Sequence[str],
        tokenizer: Any,
        lookup: PassageLookup,
        padding_side: str = "right",
    ) -> None:
        if recipe.query_length < 2:
            raise InputError(
                f"{recipe.query_length} tokens leave no room for a query", field="query_length", hint="use at least 8"
            )
        self.recipe, self.tokenizer, self.lookup, self.padding_side = recipe, tokenizer, lookup, padding_side
        self.documents = PromptEncoder(tokenizer, recipe.document, recipe.passage_length, [], "passage_length")
        self.embedding, (self.end,) = symbol_ids(tokenizer, embedding_tokens), symbol_ids(tokenizer, ["eos"])
        self.hidden = hidden_id(tokenizer) if recipe.corruption_ratio > 0 else self.end
        self._noted = recipe.corruption_ratio <= 0

    def __call__(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Makes a batch.

        Returns:
            `input_ids` and `attention_mask` (1 on real tokens) int64 [B, width]; `embedding` int64 [B], the position of
            the first [E]; `targets` bool [B, width], the tokens that the loss is on.
        """
        return self.assembled(self._documents(pairs), self.query_ids([pair.query for pair in pairs]))

    def assembled(self, documents: Sequence[list[int]], queries: Sequence[list[int]]) -> dict[str, Tensor]:
        """Joins document parts and the query parts behind them to a batch, one of each a row."""
        rows = [[*d, *self.embedding, *q] for d, q in zip(documents, queries, strict=True)]
        batch = padded(rows, self.end, self.padding_side)
        width = batch["input_ids"].shape[1]
        starts = [width - len(row) if self.padding_side == "left" else 0 for row in rows]
        embedding = [start + len(document) for start, document in zip(starts, documents, strict=True)]
        targets = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        for i, (start, row, query) in enumerate(zip(starts, rows, queries, strict=True)):
            first = start + len(row) - len(query) if self.recipe.loss_on == "query" else start + 1
            targets[i, first : start + len(row)] = True
        return {**batch, "embedding": torch.tensor(embedding), "targets": targets}

    def _documents(self, pairs: Sequence[Pair]) -> list[list[int]]:
        passages = [self.lookup[pair.passage] for pair in pairs]
        texts = [passage_text(passage.title, passage.text) for passage in passages]
        draws = [random.Random(pair.draw) for pair in pairs]  # noqa: S311
        ratio = self.recipe.corruption_ratio
        by_word = [self.recipe.corruption_unit == "word" and not self._has_no_words(text) for text in texts]
        rows = self.documents.batch(
            [
                corrupt_words(text, ratio, draw) if words else text
                for text, draw, words in zip(texts, draws, by_word, strict=True)
            ]
        )
        return [
            row if words else self._hidden(row, draw) for row, draw, words in zip(rows, draws, by_word, strict=True)
        ]

    def _has_no_words(self, text: str) -> bool:
        """Whether a text's script writes no spaces, so that hiding a word would hide all or nothing; warns once."""
        found = is_unspaced(text)
        if found and not self._noted:
            self._noted = True
            logger.warning("texts without spaces between words are hidden token by token")
        return found

    def _hidden(self, row: list[int], draw: random.Random) -> list[int]:
        """Hides tokens of a document part's passage, and none of its prompt."""
        first, behind = self.documents.body_span(row)
        body = corrupt_tokens(row[first:behind], self.recipe.corruption_ratio, draw, self.hidden)
        return [*row[:first], *body, *row[behind:]]

    def query_ids(self, queries: Sequence[str]) -> list[list[int]]:
        """Tokenises query parts: each a piece of its own, cut, and closed by the end-of-sequence token."""
        encoded = plain_ids(self.tokenizer, [query.strip() for query in queries])
        return [[*ids[: self.recipe.query_length - 1], self.end] for ids in encoded]


def corrupt_words(text: str, ratio: float, draw: random.Random) -> str:
    """Hides each white-space word with probability `ratio`; words are joined by single spaces. 0 leaves the text as is."""
    if ratio <= 0:
        return text
    return " ".join(HIDDEN if draw.random() < ratio else word for word in text.split())


def corrupt_tokens(ids: Sequence[int], ratio: float, draw: random.Random, hidden: int) -> list[int]:
    """Hides each token with probability `ratio`."""
    return [hidden if draw.random() < ratio else token for token in ids]


def hidden_id(tokenizer: Any) -> int:
    """Id of `_` as a word inside a text; warns where a tokenizer makes more than one token of it."""
    three, alone = plain_ids(tokenizer, [" ".join([HIDDEN] * 3), HIDDEN])
    if len(three) == 3:
        return three[1]
    logger.warning("this tokenizer makes %d tokens of three hidden words: hidden passages get longer", len(three))
    return alone[-1]


def objective(task: Task) -> Objective:
    """Builds query likelihood on the training set's positives."""
    recipe = task.recipe
    assert isinstance(recipe, QueryLikelihoodRecipe)  # noqa: S101
    lookup = Collection.open(task.collection).lookup()
    tokens = task.method.passage.embedding_tokens
    collate = PairCollator(recipe, tokens, task.tokenizer, lookup)
    dataset = PairDataset(task.training_set, task.seed, recipe.positives == "one")
    return Objective(dataset, collate, QueryLikelihoodLoss(recipe.attention_block))


class QueryLikelihoodLoss:
    """Eq. 8: mean negative log-likelihood of the target tokens; the first one after [E] is read at [E].

    The mean is over the tokens of the micro-batches of all processes together, so that two processes train like one with
    batches twice as large. Micro-batches that are accumulated into one update weigh the same each.

    Args:
        attention_block: Whether the query sees the passage through [E] alone (Eq. 6) or is ordinarily causal.
    """

    def __init__(self, attention_block: bool) -> None:
        self.attention_block = attention_block

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch as `PairCollator` makes it, a scalar whose mean over the processes is the loss of all."""
        logits, labels = target_logits(model, batch, self.mask(model, batch)), batch["input_ids"][batch["targets"]]
        total = functional.cross_entropy(logits.float(), labels, reduction="sum")
        return total / mean_count(labels)

    def mask(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The additive mask of a batch, float [B, 1, width, width], in the model's dtype."""
        dtype = next(model.parameters()).dtype
        if self.attention_block:
            return masks.attention_block(batch["attention_mask"], batch["embedding"], dtype)
        return masks.causal(batch["attention_mask"], dtype)


def target_logits(model: Any, batch: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Computes logits of the targets, each read one position before its target; the head runs nowhere else.

    Args:
        model: A causal LM, perhaps wrapped by PEFT, DistributedDataParallel or DeepSpeed.
        batch: As `PairCollator` makes it.
        mask: Float [B, 1, width, width].

    Returns:
        [targets, vocabulary], row after row of the batch.
    """
    before = functional.pad(batch["targets"][:, 1:], (0, 1), value=False)
    outputs = model(
        input_ids=batch["input_ids"], attention_mask=masks.check(mask), logits_to_keep=before, use_cache=False
    )
    return outputs.logits


def mean_count(labels: Tensor) -> Tensor:
    """Number of labels per process, the mean over all processes."""
    count = torch.tensor(float(labels.numel()), device=labels.device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(count)
        count /= dist.get_world_size()
    return count
