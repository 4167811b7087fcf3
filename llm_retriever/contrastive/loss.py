"""The contrastive loss over hard negatives and everything else in the pool of all processes.

Source: Zhang et al. (LLM-QL), Eq. 12; gathering as in Tevatron and the released LLM-QL code.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from llm_retriever.batches import read_out
from llm_retriever.contrastive.gradient_cache import recomputed
from llm_retriever.methods import Method

ROWS_AT_ONCE_ON_CPU = 16


def contrastive_loss(queries: Tensor, passages: Tensor, temperature: float) -> Tensor:
    """`-(1/B) Σ_i log( exp(s(q_i, d_{i·g}) / τ) / Σ_{j<B·g} exp(s(q_i, d_j) / τ) )`, with s the inner product.

    Args:
        queries: float [B, dimension]; of length 1 where s is to be the cosine.
        passages: float [B·g, dimension]; row i·g is the positive of query i.
        temperature: τ.

    Returns:
        A scalar.
    """
    scores = queries @ passages.T / temperature
    group = passages.shape[0] // queries.shape[0]
    return functional.cross_entropy(scores, torch.arange(queries.shape[0], device=scores.device) * group)


def gathered(vectors: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks; only the own rows carry gradients.

    Args:
        vectors: [n, dimension], the same n in every process.

    Returns:
        [processes · n, dimension].
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return vectors
    parts = [torch.empty_like(vectors) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, vectors.detach().contiguous())
    parts[dist.get_rank()] = vectors
    return torch.cat(parts)


class ContrastiveLoss:
    """The loss of a micro-batch: encodes it, gathers all processes' vectors, and scores every query against the pool.

    Args:
        method: Attention, normalisation, temperature and gradient cache. Under causal attention padding on the right
            needs no mask, and the fast kernels apply; a bidirectional model (`config.is_causal` False) gets the mask.
    """

    def __init__(self, method: Method) -> None:
        self.masked, self.normalise = method.attention == "bidirectional", method.normalise
        self.temperature, self.gradient_cache = method.tuning.temperature, method.tuning.gradient_cache

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss over the queries of all processes, a scalar; its gradient is that of the sum of all processes.

        Data parallelism averages gradients over the processes, each of which only has its own rows' share: the factor
        undoes the average.
        """
        queries = gathered(self.encode(model, *_side(batch, "query")))
        passages = gathered(self.encode(model, *_side(batch, "passage")))
        loss = contrastive_loss(queries, passages, self.temperature)
        others = (dist.get_world_size() if dist.is_initialized() else 1) - 1
        return loss + others * (loss - loss.detach()) if others else loss

    def encode(self, model: Any, ids: Tensor, mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Vectors of right-padded rows, float32 [rows, dimension]; `pooled` as in `batches.read_out`.

        With a gradient cache, and on a CPU, rows of like length go through the model together, a few at a time, which
        saves padding and keeps to the memory or to the caches. How often the model is called depends on the number of
        rows alone: ZeRO-3 needs it to be the same in every process.
        """
        at_once = self._rows_at_once(ids)
        if len(ids) <= at_once:
            return self._chunk(model, ids, mask, pooled)
        lengths = mask.sum(dim=1)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.split(at_once):
            width = int(lengths[rows[-1]])
            counts = None if pooled is None else pooled[rows]
            parts.append(self._chunk(model, ids[rows, :width], mask[rows, :width], counts))
        return torch.cat(parts)[order.argsort()]

    def _rows_at_once(self, ids: Tensor) -> int:
        bounds = [self.gradient_cache or len(ids)]
        if ids.device.type == "cpu":
            bounds.append(ROWS_AT_ONCE_ON_CPU)
        return min(bounds)

    def _chunk(self, model: Any, ids: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        if self.gradient_cache:
            return recomputed(self._vectors, model, ids, mask, pooled)
        return self._vectors(model, ids, mask, pooled)

    def _vectors(self, model: Any, ids: Tensor, mask: Tensor, pooled: Tensor | None) -> Tensor:
        seen = mask if self.masked else None
        hidden = model(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
        return read_out(hidden, mask, self.normalise, pooled)


def _side(batch: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    return batch[f"{name}_ids"], batch[f"{name}_mask"], batch.get(f"{name}_pooled")
