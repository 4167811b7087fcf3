"""Floating-point operations that a piece of work needs, and the rate at which the machine multiplies matrices of its shapes.

With P weights in the layers' matrices and L layers whose heads have A columns together:
    2 P per token and pass, once forward, once more for the gradients of activations, once more for those of weights: 6 P for
    all weights, 4 P for LoRA, whose own matrices count 6, and 2 P for encoding;
    4 A L per token and visible column (all before it) forward, for scores and weighted sums, and twice as much backward;
    the head at the positions where it runs;
    the last layer's query, attention and feed-forward part at the positions that are read, of which the rest knows nothing.
Padding and what gradient checkpointing computes again count as nothing: the share of the rate is that of useful work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from llm_retriever.models.fp32_products import use_fast_products

ROWS = 2048
"""Tokens of a product: as many as go through a layer at once, on a processor."""


def operations(
    model: Any, lengths: Sequence[int], passes: int, head: int = 0, adapter: int = 0, read: int = 0
) -> float:
    """What rows of tokens need.

    Args:
        model: A causal LM or its inner model; its layers' matrices are counted, an adapter's not.
        lengths: Tokens of each row; under causal attention the i-th token sees i columns.
        passes: 1 = forward, 2 = and gradients of activations, 3 = and gradients of weights.
        head: Positions that the language-model head runs at.
        adapter: Weights of an adapter, all of whose gradients are computed.
        read: Last positions of each row that are read; 0 = all of them. An adapter's share of the last layer is its matrices'.
    """
    config, tokens, last = model.config, sum(lengths), model.config.num_hidden_layers - 1
    read_tokens = sum(min(read, length) for length in lengths) if read else tokens
    everywhere, where_read = (
        sum(rows * columns for rows, columns in matrices(model, at_read, last)) for at_read in (False, True)
    )
    adapted = adapter / (everywhere + where_read)
    columns = last * sum(length * (length + 1) // 2 for length in lengths)
    columns += sum(sum(range(length - min(read or length, length) + 1, length + 1)) for length in lengths)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * size * config.num_attention_heads * columns * (1 if passes == 1 else 3)
    output = 2 * passes * head * config.vocab_size * config.hidden_size
    products = (2 * passes + 6 * adapted) * (everywhere * tokens + where_read * read_tokens)
    return products + attention + output


def matrices(model: Any, at_read: bool | None = None, last: int = 0) -> list[tuple[int, int]]:
    """Shapes of the layers' matrices: all; or those that are needed at the positions that are read alone, or the others."""
    named = ((name, value.shape) for name, value in model.named_parameters() if ".layers." in f".{name}")
    found = [(name, shape) for name, shape in named if len(shape) == 2 and "lora_" not in name]
    keys = (".k_proj.", ".v_proj.")
    return [
        (shape[0], shape[1])
        for name, shape in found
        if at_read is None or at_read == (f".layers.{last}." in f".{name}" and not any(key in name for key in keys))
    ]


def products(
    model: Any, dtype: torch.dtype, times: int = 3, device: str = "cpu", tokens: int = ROWS
) -> Callable[[], dict[str, float]]:
    """Work that only multiplies: a matrix of tokens with each matrix of the layers, in a dtype, some times.

    In fp32 by the library that models multiply with here.
    """
    shapes = matrices(model) * times
    left = {width: torch.randn(tokens, width, device=device).to(dtype) for width in {shape[1] for shape in shapes}}
    needed = float(sum(2 * tokens * rows * columns for rows, columns in shapes))
    made = {s: torch.nn.Linear(s[1], s[0], bias=False, device=device, dtype=dtype) for s in set(shapes)}
    use_fast_products(torch.nn.ModuleList(made.values()))

    @torch.inference_mode()
    def work() -> dict[str, float]:
        for shape in shapes:
            made[shape](left[shape[1]])
        return {"operations": needed}

    return work
