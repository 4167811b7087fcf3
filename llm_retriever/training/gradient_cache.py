"""Gradient caching: a batch that does not fit into memory, with the gradients of the whole batch.

In-batch negatives tie all rows of a batch together, so gradient accumulation cannot replace a large batch. Gradient caching
encodes a few rows at a time, keeps their vectors alone, and encodes the same rows once more when the gradients of the vectors
are known. Here that second encoding is the recomputation of a checkpoint inside an ordinary backward pass: loss, temperature,
gathering and data parallelism stay what they are, and each parameter's gradient is complete once, not once a chunk.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache, arXiv 2101.06983).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(encode: Callable[..., Tensor], model: Any, *rows: Tensor | None) -> Tensor:
    """`encode(model, *rows)`, of which only the result is kept: the backward pass encodes the rows again.

    The second encoding draws the same dropout masks as the first one. Checkpointed layers inside may stay on.

    Args:
        encode: Gives the vectors of rows; called with `model`, and in the backward pass with the module that data
            parallelism or DeepSpeed has wrapped: a call of the wrapper itself would start a new gradient reduction there.
        model: The model, wrapped or not.
        rows: What `encode` takes; the tensors tell the devices whose random states are kept.

    Returns:
        What `encode` returns.
    """
    models = itertools.chain([model], itertools.repeat(getattr(model, "module", model)))
    return checkpoint(lambda *inputs: encode(next(models), *inputs), *rows, use_reentrant=False)
