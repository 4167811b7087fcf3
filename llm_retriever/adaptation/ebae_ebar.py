"""Llama2Vec stage one: the vector of a text predicts the text's own words (EBAE) and those of the text that follows (EBAR).

One row is a text and behind it two prompts, SELF and NEXT, each with its embedding tokens. Both see the text, neither sees
the other, and both stand at the same positions: one pass gives what two passes would. The prompts are the prompts that the
tuned retriever puts around a passage (SELF) and around a query (NEXT).

Source: Llama2Vec (arXiv 2312.15503), Eq. 4 to 6; code FlagOpen/FlagEmbedding, research/LLARA/pretrain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llm_retriever.adaptation import bag_of_words
from llm_retriever.adaptation.consecutive import TextPair, consecutive_texts
from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.adaptation.query_likelihood import mean_count
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.methods import EbaeEbarRecipe, Method, PromptTemplate
from llm_retriever.models import masks
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.prompts import CHARACTERS_PER_TOKEN, opening_ids, plain_ids, prefix_ids, symbol_ids

SHORTEST = 8
"""Tokens of a text that can have something to say about the next one."""


class JointCollator:
    """Puts pairs of texts into rows of text, SELF and NEXT, with the bags of words to predict.

    Args:
        recipe: Length and targets.
        method: The retrieval method whose passage prompt is SELF and whose query prompt is NEXT.
        tokenizer: The backbone's, with all embedding tokens.
        padding_side: `left` or `right`; the loss is the same.

    Raises:
        InputError: The length leaves no room for a text, or the tokenizer lacks an embedding token.
        ValueError: The two prompts cannot share a text.
    """

    def __init__(self, recipe: EbaeEbarRecipe, method: Method, tokenizer: Any, padding_side: str = "left") -> None:
        if recipe.passage_length < SHORTEST:
            raise InputError(
                f"{recipe.passage_length} tokens leave no room for a text",
                field="passage_length",
                hint=f"use at least {SHORTEST}",
            )
        templates = (method.passage, method.query)
        if method.passage.prefix != method.query.prefix or any(w.tokenise != "pieces" or w.between for w in templates):
            raise ValueError(f"{method.name}: the two prompts must begin alike, and stand around one copy, in pieces")
        self.recipe, self.tokenizer, self.padding_side = recipe, tokenizer, padding_side
        self.head = [*opening_ids(tokenizer), *prefix_ids(tokenizer, method.passage)]
        self.self_branch, self.next_branch = (_branch(tokenizer, template) for template in templates)
        self.self_tokens, self.next_tokens = (max(1, len(template.embedding_tokens)) for template in templates)

    def __call__(self, pairs: Sequence[TextPair]) -> dict[str, Tensor]:
        """Makes a batch.

        Returns:
            `input_ids`, `attention_mask` (1 on real tokens) and `position_ids` int64 [B, width]; `self_start` and
            `next_start` int64 [B], where the prompts begin; `self_places` int64 [B, embedding tokens of SELF] and
            `next_places`, the positions of the embedding tokens; `self_targets` int64 [B, ids of the largest bag] and
            `next_targets`, filled up with -100; `targets` bool [B, width], the tokens of the text, for the next-token loss.
        """
        texts, own = self._cut([pair.text for pair in pairs])
        _, following = self._cut([pair.following for pair in pairs])
        rows = [[*self.head, *ids, *self.self_branch, *self.next_branch] for ids in texts]
        batch = padded(rows, pad_id(self.tokenizer), self.padding_side)
        width = batch["input_ids"].shape[1]
        starts = torch.tensor([width - len(row) if self.padding_side == "left" else 0 for row in rows])
        self_start = starts + len(self.head) + torch.tensor([len(ids) for ids in texts])
        return {
            **batch,
            **self._places(starts, self_start, width),
            "self_targets": bag_of_words.stacked(own),
            "next_targets": bag_of_words.stacked(following),
        }

    def _places(self, starts: Tensor, self_start: Tensor, width: int) -> dict[str, Tensor]:
        """Derives all that follows from the starts of rows and prompts, both int64 [B]."""
        next_start = self_start + len(self.self_branch)
        columns = torch.arange(width)
        positions = (columns - starts[:, None]).clamp(min=0)
        positions -= (columns >= next_start[:, None]) * len(self.self_branch)
        first = starts + max(1, len(self.head))  # Nothing stands before the first token of all, to predict it from.
        return {
            "position_ids": positions,
            "self_start": self_start,
            "next_start": next_start,
            "self_places": next_start[:, None] + torch.arange(-self.self_tokens, 0),
            "next_places": (next_start + len(self.next_branch))[:, None] + torch.arange(-self.next_tokens, 0),
            "targets": (columns >= first[:, None]) & (columns < self_start[:, None]),
        }

    def _cut(self, texts: Sequence[str]) -> tuple[list[list[int]], list[list[int]]]:
        """Cuts texts and their bags of ids at the same place, unless the recipe has a length of its own for bags."""
        length, of_bag = self.recipe.passage_length, self.recipe.target_length
        bodies = [_start_of(text.strip(), CHARACTERS_PER_TOKEN * max(length, 2 * of_bag)) for text in texts]
        encoded = self.tokenizer(
            bodies, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        ids = [found[:length] for found in encoded["input_ids"]]
        if of_bag:
            bags = [bag[:of_bag] for bag in bag_of_words.content_ids(self.tokenizer, bodies)]
        elif self.recipe.clean_targets:
            ends = [offsets[:length][-1][1] if offsets else 0 for offsets in encoded["offset_mapping"]]
            cut = [body[:end] for body, end in zip(bodies, ends, strict=True)]
            bags = bag_of_words.content_ids(self.tokenizer, cut)
        else:
            bags = [bag_of_words.without_specials(self.tokenizer, found) for found in ids]
        return ids, [list(dict.fromkeys(bag)) for bag in bags] if self.recipe.loss == "released" else bags


class EbaeEbarLoss:
    """`bag_weight` · (L_EBAE + L_EBAR) + `ar_weight` · L_AR.

    L_EBAE and L_EBAR are the bag-of-words losses of `bag_of_words`, L_AR is the mean next-token cross-entropy on the text.
    Each mean is over the micro-batches of all processes together, so that two processes train like one with batches twice
    as large.

    Args:
        recipe: Which bag-of-words loss, and the weights.
    """

    def __init__(self, recipe: EbaeEbarRecipe) -> None:
        self.recipe = recipe
        self.bag_loss = bag_of_words.unique_loss if recipe.loss == "released" else bag_of_words.token_loss

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch as `JointCollator` makes it, a scalar whose mean over the processes is the loss of all."""
        before = functional.pad(batch["targets"][:, 1:], (0, 1), value=False) & (self.recipe.ar_weight > 0)
        logits, number = self.logits(model, batch, before)
        ebae, ebar = (
            self.bag_loss(logits[number.gather(1, batch[f"{branch}_places"])], batch[f"{branch}_targets"])
            for branch in ("self", "next")
        )
        value = self.recipe.bag_weight * (ebae + ebar)
        if self.recipe.ar_weight > 0:
            labels = batch["input_ids"][batch["targets"]]
            total = functional.cross_entropy(logits[number[before]].float(), labels, reduction="sum")
            value = value + self.recipe.ar_weight * total / mean_count(labels).clamp(min=1e-6)
        return value

    @staticmethod
    def logits(model: Any, batch: dict[str, Tensor], before: Tensor) -> tuple[Tensor, Tensor]:
        """Computes logits at the embedding tokens and at some other positions; the head runs nowhere else.

        Args:
            model: A causal LM, perhaps wrapped by PEFT, DistributedDataParallel or DeepSpeed.
            batch: As `JointCollator` makes it.
            before: bool [B, width], the other positions.

        Returns:
            [positions, vocabulary], row after row of the batch; int64 [B, width], the number of each position in it.
        """
        read = before.clone()
        for branch in ("self_places", "next_places"):
            read.scatter_(1, batch[branch], value=True)
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=masks.check(joint_mask(model, batch)),
            position_ids=batch["position_ids"],
            logits_to_keep=read,
            use_cache=False,
        )
        return outputs.logits, (read.flatten().cumsum(0) - 1).view(read.shape)


def joint_mask(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The additive mask of a batch, float [B, 1, width, width], in the model's dtype."""
    dtype = next(model.parameters()).dtype
    return masks.joint(batch["attention_mask"], batch["self_start"], batch["next_start"], dtype)


def objective(task: Task) -> Objective:
    """Builds EBAE and EBAR on consecutive texts of the collection; the training set is not used."""
    recipe = task.recipe
    assert isinstance(recipe, EbaeEbarRecipe)  # noqa: S101
    collate = JointCollator(recipe, task.method, task.tokenizer)
    dataset = consecutive_texts(Collection.open(task.collection), task.seed)
    return Objective(dataset, collate, EbaeEbarLoss(recipe))


def _branch(tokenizer: Any, template: PromptTemplate) -> list[int]:
    """Ids of the prompt behind the text."""
    return [*plain_ids(tokenizer, [template.suffix])[0], *symbol_ids(tokenizer, template.embedding_tokens)]


def _start_of(text: str, most: int) -> str:
    """Cuts a very long text to its start, up to a space near there; leaves it where there is none, as in Chinese."""
    end = text.rfind(" ", most - CHARACTERS_PER_TOKEN, most) if len(text) > most else -1
    return text if end < 0 else text[:end]
