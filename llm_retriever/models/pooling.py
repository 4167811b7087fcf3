"""The table of poolings, from the hidden states of a batch to one vector a text, of retrievers and published encoders alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Pooling:
    """A row of the table.

    Attributes:
        vector: From last hidden states, float [rows, width, dimension], and a mask [rows, width], non-zero on the tokens that
            take part, to float32 [rows, dimension]. Only states that take part may be there, in their order.
        reads: The tokens of a prompt that take part: `all`; the `last`; the `embedding` tokens; the `text` and what follows it.
        exported: What sentence-transformers calls it; "" = that library has no such pooling.
    """

    vector: Callable[[Tensor, Tensor], Tensor]
    reads: Literal["all", "last", "embedding", "text"] = "all"
    exported: str = ""

    @property
    def counted(self) -> bool:
        """Whether a batch has to say how many of a row's last tokens take part."""
        return self.reads in ("embedding", "text")


def first(hidden: Tensor, mask: Tensor) -> Tensor:
    """Takes the state at the first position, whatever the mask; rows are padded on the right."""
    return hidden[:, 0].float()


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Takes the state at the last token, on whichever side the padding is."""
    position = mask.shape[1] - 1 - mask.flip(1).to(torch.int64).argmax(dim=1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), position].float()


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Averages the states."""
    return _weighted(hidden, mask.bool().float())


def weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Averages the states weighted by their position, from 1 (SGPT, arXiv 2202.08904, Eq. 2)."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return _weighted(hidden, mask.bool().float() * (position + 1).float())


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("rw,rwd->rd", weights, hidden.float()) / weights.sum(dim=1, keepdim=True)


POOLINGS = {
    "cls": Pooling(first, exported="cls"),
    "mean": Pooling(mean, exported="mean"),
    "weighted mean": Pooling(weighted_mean, exported="weightedmean"),
    "last": Pooling(last, "last", exported="lasttoken"),
    "embedding": Pooling(mean, "embedding", exported="lasttoken"),
    "text": Pooling(mean, "text", exported="mean"),
}


def counted(mask: Tensor, counts: Tensor | None) -> Tensor:
    """Leaves so many last tokens of each row in a mask, [rows, width]; None = all of them."""
    return mask if counts is None else mask.bool() & (mask.flip(1).cumsum(dim=1).flip(1) <= counts[:, None])


def read(mask: Tensor, pooling: str, counts: Tensor | None = None) -> Tensor:
    """Finds the tokens that a pooling reads, bool [rows, width]; arguments as of `pool`."""
    if POOLINGS[pooling].reads == "last":
        return mask.bool() & (mask.flip(1).cumsum(dim=1).flip(1) == 1)
    return counted(mask, counts).bool()


def pool(
    hidden: Tensor,
    mask: Tensor,
    pooling: str = "last",
    counts: Tensor | None = None,
    *,
    skip: int = 0,
    normalise: bool = False,
) -> Tensor:
    """Pools to one vector a text.

    Args:
        hidden: Last hidden states, float [rows, width, dimension].
        mask: [rows, width]; non-zero on real tokens.
        pooling: A row of the table.
        counts: int64 [rows]; so many last tokens of each row take part. None = all of them.
        skip: So many first tokens, those of a prefix, are left out, but never all of a text's; padding is on the right.
        normalise: Scale each vector to length 1.

    Returns:
        float32 [rows, dimension].
    """
    mask = counted(mask, counts)
    if skip:
        position, end = torch.arange(mask.shape[1], device=mask.device), mask.sum(dim=1, keepdim=True) - 1
        mask = mask.bool() & (position >= end.clamp(max=skip))
    vectors = POOLINGS[pooling].vector(hidden, mask)
    return functional.normalize(vectors, dim=-1) if normalise else vectors
