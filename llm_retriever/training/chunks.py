"""Sends rows of like length through a model together, so that no row is padded to the longest one of its batch.

A batch's rows are sorted by length and cut into chunks, each as wide as its longest row. Several forward passes before one
backward pass give the loss and the gradients of one pass over everything, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from llm_retriever.models.last_layer import LastLayer
from llm_retriever.models.shared_prefix import PrefixSharing, SharedPrefix
from llm_retriever.training.gradient_cache import checkpointed
from llm_retriever.training.passes import divisor

TOKENS, TOKENS_OF_ALL_WEIGHTS = {"cpu": 2048}, {"cpu": 8192}
"""Tokens of a pass, padding included: more of them leave a processor's caches, but where all weights are trained every pass
adds gradients to all of them."""
TOKENS_ON_GPU = 16_384
OVERHEAD = {"cpu": 64}
"""What one more pass costs, in tokens: about as many as are computed while the weights are read once."""
OVERHEAD_ON_GPU, OVERHEAD_SHARDED = 512, 4096
"""Under ZeRO-3 a pass also gathers all weights from the other processes."""


@dataclass(frozen=True)
class Limits:
    """What a pass through a model may hold, and what it costs.

    Attributes:
        tokens: Rows times width, at most; a single row may be longer.
        rows: At most; 0 = as many as the tokens allow.
        overhead: Tokens that could be computed in the time that one more pass costs.
    """

    tokens: int
    rows: int = 0
    overhead: int = 0


def limits_of(model: Any, device: torch.device, rows: int = 0) -> Limits:
    """The limits for a model on a device; `rows` bounds the rows of a pass, 0 does not."""
    weights = list(model.parameters())
    sharded = any(hasattr(weight, "ds_id") for weight in weights)
    tokens = TOKENS_OF_ALL_WEIGHTS if all(weight.requires_grad for weight in weights) else TOKENS
    overhead = OVERHEAD_SHARDED if sharded else OVERHEAD.get(device.type, OVERHEAD_ON_GPU)
    return Limits(tokens.get(device.type, TOKENS_ON_GPU), rows, overhead)


def chunked(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    """Cuts rows, sorted by length, where the padding that is left and the passes cost least.

    Args:
        lengths: Tokens of each row.
        limits: Limits of a chunk.

    Returns:
        Positions in `lengths`, each exactly once; the longest rows first, so that what does not fit fails at once.

    Example:
        >>> chunked([2, 9, 3, 8], Limits(tokens=20, overhead=1))
        [[1, 3], [2, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    width, number = np.asarray([lengths[i] for i in order], dtype=np.int64), len(order)
    least, start = np.zeros(number + 1, dtype=np.int64), np.zeros(number + 1, dtype=np.int64)
    for end in range(1, number + 1):
        first = max(0, end - limits.rows) if limits.rows else 0
        size = np.arange(end - first, 0, -1) * width[first:end]
        cost = least[first:end] + size + limits.overhead
        cost[:-1][size[:-1] > limits.tokens] = np.iinfo(np.int64).max
        best = int(cost.argmin())
        least[end], start[end] = cost[best], first + best
    cuts = [number]
    while cuts[-1]:
        cuts.append(int(start[cuts[-1]]))
    return [order[begin:end] for end, begin in zip(cuts[-2::-1], cuts[:0:-1], strict=True)]


def agreed(chunks: list[list[int]], device: torch.device) -> list[list[int]]:
    """Splits chunks until all processes have equally many: where weights are sharded, each must call the model as often.

    Every process must have the same number of rows, and call this.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return chunks
    most = torch.tensor(len(chunks), device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return _split(chunks, int(most))


def least_of_all(numbers: list[int], device: torch.device) -> list[int]:
    """The least of all processes, of each number; every process must have as many, and call this."""
    found = torch.tensor(numbers, device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MIN)
    return [int(number) for number in found.tolist()]


def _split(chunks: list[list[int]], number: int) -> list[list[int]]:
    """Halves the chunk with the most rows until there are `number`."""
    chunks = list(chunks)
    while len(chunks) < number:
        place = max(range(len(chunks)), key=lambda i: len(chunks[i]))
        half = len(chunks[place]) // 2
        chunks[place : place + 1] = [chunks[place][:half], chunks[place][half:]]
    return chunks


class ByLength:
    """A loss whose model reads the rows of a batch in chunks of like length; its value and its gradients stay the same.

    Args:
        loss: Calls the model once, on all rows of the batch, and reads its `logits` at `logits_to_keep`. It does not depend
            on the order of the rows.

    After memory ran out (`passes.divisor`) a pass has fewer rows, and only its logits are kept for the backward pass.
    """

    def __init__(self, loss: Callable[[Any, dict[str, Tensor]], Tensor]) -> None:
        self.loss, self.divisor = loss, divisor()
        self.sharing, self.last_layer = PrefixSharing(), LastLayer()

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a batch, each of whose tensors has one row an example, `attention_mask` [B, width] among them."""
        real = batch["attention_mask"]
        rows = -(-len(real) // self.divisor) if self.divisor > 1 else 0
        chunks = chunked(real.sum(dim=1).tolist(), limits_of(model, real.device, rows))
        chunks = agreed(chunks, real.device)
        order = torch.tensor([row for chunk in chunks for row in chunk], device=real.device)
        batch = {name: value[order] for name, value in batch.items()}
        sizes = [len(chunk) for chunk in chunks]
        shorter = (self.sharing, self.last_layer)
        return self.loss(_Chunks(model, batch["attention_mask"], sizes, *shorter, recompute=self.divisor > 1), batch)


class _Chunks:
    """Stands for a model: calls it once a chunk of consecutive rows, without the columns that are padding in all of them.

    What all rows begin with goes through the model once, where nothing of it is read out.
    """

    def __init__(
        self,
        model: Any,
        real: Tensor,
        sizes: list[int],
        sharing: PrefixSharing,
        last_layer: LastLayer,
        recompute: bool,
    ) -> None:
        self._model, self._sizes, self._recompute = model, sizes, recompute
        self._sharing, self._last_layer = sharing, last_layer
        self._right = bool((real[:, -1] == 0).any())
        lengths = real.sum(dim=1).tolist()
        ends = np.cumsum(sizes).tolist()
        self._widths = [max(lengths[end - size : end]) for end, size in zip(ends, sizes, strict=True)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        """Logits at `logits_to_keep`, row after row, as one call would give them."""
        total, tensors = sum(self._sizes), {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
        rest, logits, first = {k: v for k, v in inputs.items() if k not in tensors}, [], 0
        assert all(len(value) == total for value in tensors.values())  # noqa: S101
        prefix = self._prefix(**tensors)
        for size, width in zip(self._sizes, self._widths, strict=True):
            rows = {
                name: self._cut(value[first : first + size], width, prefix.length) for name, value in tensors.items()
            }
            logits.append(self._logits(rows, rest, prefix))
            first += size
        return SimpleNamespace(logits=torch.cat(logits, dim=-2))

    def _prefix(self, input_ids: Tensor, attention_mask: Tensor, **others: Tensor) -> SharedPrefix:
        """What all rows begin with: causal in itself, before the first logits, and positions count on behind it."""
        room = torch.zeros_like(input_ids[:, 0])
        if self._right and attention_mask.ndim == 4 and set(others) == {"logits_to_keep"}:
            room = others["logits_to_keep"].to(torch.int64).argmax(dim=1)
        (length,) = least_of_all([self._sharing.length(input_ids, room)], input_ids.device)
        return self._sharing.prefix(self._model, input_ids, length, logits_to_keep=1)

    def _logits(self, rows: dict[str, Tensor], rest: dict[str, Any], prefix: SharedPrefix) -> Tensor:
        def read(model: Any, *tensors: Tensor) -> Tensor:
            inputs = {**rest, **dict(zip(rows, tensors, strict=True)), **prefix.inputs(len(tensors[0]))}
            return self._last_layer.logits(model, inputs.pop("logits_to_keep"), **inputs)

        return checkpointed(read, self._model, *rows.values()) if self._recompute else read(self._model, *rows.values())

    def _cut(self, value: Tensor, width: int, prefix: int) -> Tensor:
        """Cuts [rows, width] or [rows, 1, width, width] to the chunk's own width, and to what stands behind a prefix."""
        columns = slice(0, width) if self._right else slice(value.shape[-1] - width, None)
        if value.ndim == 4:
            return value[..., columns, columns][..., prefix:, :].contiguous()
        return value[..., columns][..., prefix:].contiguous()
