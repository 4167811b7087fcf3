"""Four-dimensional attention masks: additive floats that decide which position sees which.

transformers 5 hands a caller's mask [rows, 1, width, width] to the attention as it is, so no model has to be patched.
Every mask is 0 where a position is seen and one huge negative number where it is not. It is never boolean, which eager
attention would add as 0 and 1 without a word, and never holds minus infinity, which makes NaN of a row that sees nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = {torch.float32: torch.finfo(torch.bfloat16).min}
"""The blocking number where it is not the dtype's least: fp32's own would become minus infinity if cast to bf16."""


def causal(real: Tensor, dtype: torch.dtype) -> Tensor:
    """Causal mask: every position sees itself and the real positions before it: `A(i) = {k..i}` with k pads on the left.

    Args:
        real: [rows, width]; non-zero on real tokens. The pads may be on either side.
        dtype: What the model computes in.

    Returns:
        Float [rows, 1, width, width].
    """
    return _additive(_causal(real), dtype)


def attention_block(real: Tensor, embedding: Tensor, dtype: torch.dtype) -> Tensor:
    """Block mask: what follows the embedding token [E] sees the text before it through [E] alone (LLM-QL, Eq. 6).

    With e = position of [E] and k pads on the left, `A(i) = {k..i}` for i ≤ e and `A(i) = {e..i}` for i > e.

    Args:
        real: [rows, width]; non-zero on real tokens. The pads may be on either side.
        embedding: int64 [rows]; each row's own e, pads counted; the first one if there are several embedding tokens.
        dtype: What the model computes in.

    Returns:
        Float [rows, 1, width, width].
    """
    position = torch.arange(real.shape[1], device=real.device)
    after = position[None, :, None] > embedding[:, None, None]
    before = position[None, None, :] < embedding[:, None, None]
    return _additive(_causal(real) & ~(after & before), dtype)


def joint(real: Tensor, self_start: Tensor, next_start: Tensor, dtype: torch.dtype) -> Tensor:
    """Joint mask: two prompts behind one text see the text and themselves, and not each other (Llama2Vec, EBAE and EBAR).

    With SELF in the columns s..p-1, NEXT from p on and k pads on the left, `A(i) = {k..i}` for i < p and
    `A(i) = {k..s-1} ∪ {p..i}` for i ≥ p. For the two to be what they are alone, the position ids of NEXT begin again where
    those of SELF do.

    Args:
        real: [rows, width]; non-zero on real tokens. The pads may be on either side.
        self_start: int64 [rows]; each row's own s, pads counted.
        next_start: int64 [rows]; each row's own p, pads counted.
        dtype: What the model computes in.

    Returns:
        Float [rows, 1, width, width].
    """
    position = torch.arange(real.shape[1], device=real.device)
    from_next = position >= next_start[:, None]
    within_self = (position >= self_start[:, None]) & ~from_next
    return _additive(_causal(real) & ~(from_next[:, :, None] & within_self[:, None, :]), dtype)


def check(mask: Tensor) -> Tensor:
    """Returns `mask` if every attention implementation understands it alike.

    Raises:
        ValueError: It is not a float [rows, 1, width, width] of finite numbers.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ValueError(f"a mask has the shape [rows, 1, width, width], not {list(mask.shape)}")
    if not mask.is_floating_point():
        raise ValueError(f"a mask is added to the scores: {mask.dtype} is silently wrong under eager attention")
    if not torch.isfinite(mask).all():
        raise ValueError("a mask with infinite entries makes NaN of rows that see nothing")
    return mask


def _causal(real: Tensor) -> Tensor:
    """Boolean [rows, width, width], row by column."""
    width = real.shape[1]
    triangle = torch.ones(width, width, dtype=torch.bool, device=real.device).tril()
    return triangle & real.bool()[:, None, :]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Makes a mask additive; a pad sees itself: a row that sees nothing averages over everything, or is NaN in some kernels."""
    alone = torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
    blocked = ~(seen | alone)
    mask = torch.zeros(blocked.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(blocked, LEAST.get(dtype, torch.finfo(dtype).min)).unsqueeze(1)
