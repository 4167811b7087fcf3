"""Attention as two matrix products, in bf16 on a processor.

torch's fused kernel for processors spends most of its backward pass outside matrix products. Two products with a softmax between
them keep the scores of a pass, which are few where rows are short, and take a third of the time or less
(docs/performance.md). Whatever is not of that kind goes to the fused kernel: fp32, dropout, long rows, scores that an
architecture changes in its own way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "products"
LONGEST = 512
"""Tokens of a row; the scores of longer ones leave a processor's caches."""
CHANGES = ("softcap", "s_aux", "position_bias", "cache")
"""What an architecture may hand to its attention beside the mask."""


def use_products(model: Any) -> None:
    """Makes a model compute its attention as products, where it would take the fused kernel and can be told otherwise."""
    AttentionInterface.register(NAME, product_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)


def product_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **changes: Any,
) -> tuple[Tensor, None]:
    """`softmax(q kᵀ · scaling + mask) v`; arguments and result are those of an attention function of transformers.

    Args:
        module: The attention layer.
        query: Float [rows, heads, width, size].
        key: Float [rows, groups, columns, size]; heads are a multiple of groups.
        value: Float [rows, groups, columns, value size].
        attention_mask: [rows or 1, 1, width, columns]; boolean, or float that is added; None = as `is_causal` says.
        dropout: Of the attention weights.
        scaling: None = 1 / √size.
        is_causal: None = as the layer says.
        changes: What else the architecture hands over.

    Returns:
        Float [rows, width, heads, value size], and None.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    changed = dropout or any(changes.get(name) is not None for name in CHANGES)
    if changed or dtype != torch.bfloat16 or key.shape[2] > LONGEST or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **changes)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    (rows, heads, width, size), groups = query.shape, key.shape[1]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = _additive(attention_mask, causal, width, key.shape[2], query)
    grouped = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, groups, -1, size)
    scores = (grouped @ key.transpose(2, 3)).view(rows, groups, -1, width, key.shape[2])
    scores = scores if mask is None else scores + mask[:, :, None]
    weights = scores.softmax(dim=-1).view(rows, groups, -1, key.shape[2])
    return (weights @ value).view(rows, heads, width, -1).transpose(1, 2).contiguous(), None


def _additive(mask: Tensor | None, causal: bool, width: int, columns: int, like: Tensor) -> Tensor | None:
    """The mask as it is added to scores, [rows or 1, 1, width, columns]."""
    if mask is None:
        if not causal or width == 1:
            return None
        mask = torch.ones(1, 1, width, columns, dtype=torch.bool, device=like.device).tril()
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~mask, torch.finfo(like.dtype).min
    )
