"""Pads rows of token ids into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def pad_id(tokenizer: Any) -> int:
    """Returns an id to pad with: the padding token, or another one where the tokenizer has none; masks come from lengths."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(i for i in ids if i is not None))


def padded(rows: Sequence[Sequence[int]], pad: int, side: str = "left", multiple_of: int = 1) -> dict[str, Tensor]:
    """Pads rows of ids to the longest one.

    Args:
        rows: Token ids, one sequence a row.
        pad: Id that fills up; masks come from the lengths, so it may also be a real token's id.
        side: `left` or `right`.
        multiple_of: The width is rounded up to a multiple of this.

    Returns:
        `input_ids` and `attention_mask`, int64 [rows, width]; the mask is 1 on real tokens.
    """
    width = max((len(row) for row in rows), default=0)
    width = -(-width // multiple_of) * multiple_of
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, span] = torch.tensor(row, dtype=torch.long)
        mask[i, span] = 1
    return {"input_ids": ids, "attention_mask": mask}


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups rows of similar length into batches of at most `budget` tokens, padding included; longest rows first.

    The longest first, so that what does not fit into memory fails at once and the time left is not underestimated.

    Args:
        lengths: Tokens of each row.
        budget: Rows times width of a batch; a single row that is longer makes a batch of its own.

    Returns:
        Positions in `lengths`, each exactly once.

    Example:
        >>> token_batches([2, 9, 3, 8], budget=20)
        [[1, 3], [2, 0]]
    """
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches
