"""LLM2Vec's second stage: unsupervised SimCSE, where a passage's two vectors under different dropout are a positive pair.

Source: Gao et al. (SimCSE, arXiv 2104.08821), Eq. 4; BehnamGhader et al. (LLM2Vec, arXiv 2404.05961), section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.data.collection import CORPUS_FILE, Collection
from llm_retriever.data.lines import JsonItems
from llm_retriever.errors import InputError
from llm_retriever.methods import Method, SimcseRecipe
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.pooling import POOLINGS, pool
from llm_retriever.models.prompts import PromptEncoder, passage_text


class PassageDataset:
    """The collection's passages as texts, by their number; lines are read when needed, memory is 8 bytes a passage.

    Nothing is drawn here: a passage's two views differ by the model's dropout, which follows from the training's seed.

    Args:
        collection: Where the passages are.
        joiner: Between title and text.
    """

    def __init__(self, collection: Collection, joiner: str = " ") -> None:
        self._rows, self.joiner = JsonItems(collection.directory / CORPUS_FILE), joiner

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, item: int) -> str:
        row = self._rows[item]
        return passage_text(row["title"], row["text"], self.joiner)


class PassageCollator:
    """Puts passages into the retrieval method's prompt, and pads them on the right, as every encoding does.

    Args:
        method: Prompt of passages and pooling.
        tokenizer: The backbone's.
        length: Tokens of a passage, prompt included.

    Raises:
        InputError: The length leaves no room for a text.
    """

    def __init__(self, method: Method, tokenizer: Any, length: int) -> None:
        self.passages = PromptEncoder(tokenizer, method.passage, length, setting="passage_length")
        self.pooling, self.pad = method.pooling, pad_id(tokenizer)

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Makes a batch.

        Returns:
            `input_ids` and `attention_mask` (1 on real tokens) int64 [B, width]; where the pooling reads
            only a part, `pooled` int64 [B], so many last tokens.
        """
        rows = self.passages.batch(texts)
        batch = padded(rows, self.pad, "right")
        if POOLINGS[self.pooling].counted:
            batch["pooled"] = torch.tensor([self.passages.pooled(row, POOLINGS[self.pooling].reads) for row in rows])
        return batch


class Gathered(torch.autograd.Function):
    """Gathers the rows of all processes in the order of their ranks; gradients flow back to every process."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        """[n, dimension], the same n in every process, to [processes · n, dimension]."""
        parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, vectors.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sums the gradients of all processes' losses for the own rows."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class SimcseLoss:
    """`-(1/B) Σ_i log( exp(cos(h_i, h'_i)/τ) / Σ_j exp(cos(h_i, h'_j)/τ) )` over two views h, h' of B passages.

    The second views are gathered from all processes, with gradients; each process's loss is the mean over its own first
    views, so that the mean over the processes is the loss of one process with all passages, and so is its gradient.

    Args:
        temperature: τ.
        pooling: Of the retrieval method.
    """

    def __init__(self, temperature: float, pooling: str) -> None:
        self.temperature, self.pooling = temperature, pooling

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch as `PassageCollator` makes it, a scalar; the model is in training mode."""
        first, second = self.views(model, batch)
        return self.between(first, second)

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """Computes the loss of this process's views, each float [B, dimension] and of length 1."""
        rank = 0
        if dist.is_initialized() and dist.get_world_size() > 1:
            rank, second = dist.get_rank(), Gathered.apply(second)
        scores = first @ second.T / self.temperature
        own = torch.arange(len(first), device=scores.device) + rank * len(first)
        return functional.cross_entropy(scores, own)

    def views(self, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Encodes each passage twice, to length 1, float32 [B, dimension] each; one pass, in which no row drops alike."""
        twice = {name: torch.cat([value, value]) for name, value in batch.items()}
        hidden = model(
            input_ids=twice["input_ids"], attention_mask=twice["attention_mask"], use_cache=False
        ).last_hidden_state
        vectors = pool(hidden, twice["attention_mask"], self.pooling, twice.get("pooled"), normalise=True)
        first, second = vectors.chunk(2)
        return first, second


def set_attention_dropout(model: Any, dropout: float) -> None:
    """Sets the dropout of attention in a model's layers alone: its configuration, which is saved, does not learn of it.

    The layers drop only in training mode, in eager attention and SDPA alike.

    Raises:
        InputError: The model's attention has no dropout, so the two views of a text would be the same.
    """
    layers = [
        module for module in model.modules() if isinstance(getattr(module, "attention_dropout", None), float | int)
    ]
    if not layers:
        raise InputError(
            f"the attention of {type(model).__name__} has no dropout to train SimCSE with",
            field="method",
            hint="use mntp, or a Llama, Mistral or Qwen backbone",
        )
    for layer in layers:
        layer.attention_dropout = dropout


def objective(task: Task) -> Objective:
    """Builds SimCSE on all passages of the collection."""
    recipe = task.recipe
    assert isinstance(recipe, SimcseRecipe)  # noqa: S101
    return Objective(
        dataset=PassageDataset(Collection.open(task.collection), task.method.title_joiner),
        collate=PassageCollator(task.method, task.tokenizer, recipe.passage_length),
        loss=SimcseLoss(recipe.temperature, task.method.pooling),
        head=False,
        prepare=lambda model: set_attention_dropout(model, recipe.dropout),
    )
