"""From the hidden states of a batch to one vector a text."""

from __future__ import annotations

import torch
from torch import Tensor

from llm_retriever.encoders.rows import Pooling
from llm_retriever.models.batches import pool


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling, skip: int = 0) -> Tensor:
    """One vector a text.

    Args:
        hidden: Last hidden states, float [rows, width, dimension]; padding is on the right.
        mask: [rows, width]; 1 on real tokens.
        pooling: `cls`, `mean`, `weighted mean` or `last`. The weighted mean is that of SGPT (arXiv 2202.08904, Eq. 2): the
            weight of a token is its position, from 1.
        skip: So many first tokens, those of a prefix, are left out of a mean; never all of a text's.

    Returns:
        float32 [rows, dimension].
    """
    if pooling == "cls":
        return hidden[:, 0].float()
    if pooling == "last":
        return pool(hidden, mask, normalise=False)
    weights = _weights(mask, weighted=pooling == "weighted mean", skip=skip)
    return torch.einsum("rw,rwd->rd", weights, hidden.float()) / weights.sum(dim=1, keepdim=True)


def _weights(mask: Tensor, *, weighted: bool, skip: int) -> Tensor:
    """Weights of a mean, float32 [rows, width]; zero on padding."""
    position = torch.arange(mask.shape[1], device=mask.device)
    last = mask.sum(dim=1, keepdim=True) - 1
    chosen = mask.bool() & (position >= torch.minimum(last, torch.full_like(last, skip)))
    return chosen.float() * (position + 1).float() if weighted else chosen.float()


def token_types(ids: Tensor, mask: Tensor, separator: int) -> Tensor:
    """Token types of a pair, int64 [rows, width]: 1 on what follows the first separator, 0 before it and on padding.

    Args:
        ids: [rows, width].
        mask: [rows, width].
        separator: Id of the token that ends the first text of the pair, and belongs to it.
    """
    ends = (ids == separator).long()
    return ((ends.cumsum(dim=1) - ends > 0) & mask.bool()).long()
