"""The contrastive loss over hard negatives and everything else in the pool of all processes.

Source: Zhang et al. (LLM-QL), Eq. 12; gathering as in Tevatron and the released LLM-QL code. Prefixes of the vectors that
are trained beside them: Kusupati et al., Matryoshka Representation Learning (arXiv 2205.13147), Eq. 1, as the mean.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from llm_retriever.methods import Method
from llm_retriever.models.last_layer import LastLayer
from llm_retriever.models.pooling import pool, read
from llm_retriever.models.shared_prefix import NOTHING, PrefixSharing, SharedPrefix
from llm_retriever.training.chunks import agreed, chunked, least_of_all, limits_of
from llm_retriever.training.gradient_cache import checkpointed
from llm_retriever.training.passes import divisor

Group = tuple[list[int], SharedPrefix]


def contrastive_loss(
    queries: Tensor, passages: Tensor, temperature: float, false_negative_mask: Tensor | None = None
) -> Tensor:
    """`-(1/B) Σ_i log( exp(s(q_i, d_{i·g}) / τ) / Σ_{j<B·g} exp(s(q_i, d_j) / τ) )`, with s the inner product.

    Args:
        queries: float [B, dimension]; of length 1 where s is to be the cosine.
        passages: float [B·g, dimension]; row i·g is the positive of query i.
        temperature: τ.
        false_negative_mask: bool [B, B·g]; True = left out of the sum. None = nothing is.

    Returns:
        A scalar.
    """
    scores = queries @ passages.T / temperature
    if false_negative_mask is not None:
        scores = scores.masked_fill(false_negative_mask, float("-inf"))
    group = passages.shape[0] // queries.shape[0]
    return functional.cross_entropy(scores, torch.arange(queries.shape[0], device=scores.device) * group)


def distillation_loss(queries: Tensor, passages: Tensor, temperature: float, teacher: Tensor) -> Tensor:
    """`(1/B) Σ_i KL( softmax(t_i) ‖ softmax(s(q_i, d_{i·g}) / τ, …, s(q_i, d_{i·g+g-1}) / τ) )`: each query's own passages.

    Source: as in RocketQAv2 (Ren et al., arXiv 2110.07367), Eq. 5, and FlagEmbedding's knowledge distillation.

    Args:
        queries: float [B, dimension].
        passages: float [B·g, dimension].
        temperature: τ, of the student.
        teacher: float [B, g], t, already divided by a temperature of its own.

    Returns:
        A scalar.
    """
    scores = torch.einsum("bd,bgd->bg", queries, passages.unflatten(0, teacher.shape)) / temperature
    own, target = (functional.log_softmax(values.float(), dim=-1) for values in (scores, teacher))
    return functional.kl_div(own, target, reduction="batchmean", log_target=True)


def all_gather_with_grad(vectors: Tensor) -> Tensor:
    """Gathers the rows of all processes in the order of their ranks; only the own rows carry gradients.

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


def mask_false_negatives(passages: Tensor, positives: Tensor) -> Tensor:
    """Marks the positives of a query in the pool of all processes, but for the one that it is trained on.

    Args:
        passages: int64 [B·g], a number for each passage's id.
        positives: int64 [B, most positives of a query], numbers of all its positives, filled up with -1.

    Returns:
        bool [processes · B, processes · B·g].
    """
    mask = (all_gather_with_grad(passages)[None, :, None] == positives[:, None, :]).any(dim=-1)
    mask = all_gather_with_grad(mask.to(torch.uint8)).bool()
    own = torch.arange(len(mask), device=mask.device)
    mask[own, own * (mask.shape[1] // len(mask))] = False
    return mask


class ContrastiveLoss:
    """The loss of a micro-batch: encodes it, gathers all processes' vectors, and scores every query against the pool.

    Args:
        method: Attention, normalisation, temperature, gradient cache, masking, distillation, prefixes. Under causal attention
            padding on the right needs no mask, and the fast kernels apply; a bidirectional model (`config.is_causal`
            False) gets the mask.
    """

    def __init__(self, method: Method) -> None:
        self.masked = method.attention == "bidirectional"
        self.normalise, self.pooling = method.normalise, method.pooling
        self.temperature, self.gradient_cache = method.tuning.temperature, method.tuning.gradient_cache
        self.mask_positives, self.weight = method.tuning.mask_positives, method.tuning.distillation_weight
        self.teacher_temperature, self.prefixes = method.tuning.distillation_temperature, method.tuning.prefixes
        self.divisor, self.sharing, self.last_layer = divisor(), PrefixSharing(), LastLayer()

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss over the queries of all processes, a scalar; its gradient is that of the sum of all processes.

        Data parallelism averages gradients over the processes, each of which only has its own rows' share: the factor
        undoes the average.
        """
        sides = [len(batch["query_ids"]), len(batch["passage_ids"])]
        vectors = self.encode(model, *_both_sides(batch), sides).split(sides)
        loss = self._of(batch, *map(all_gather_with_grad, vectors))
        others = (dist.get_world_size() if dist.is_initialized() else 1) - 1
        return loss + others * (loss - loss.detach()) if others else loss

    def _of(self, batch: dict[str, Tensor], queries: Tensor, passages: Tensor) -> Tensor:
        false_negative_mask = None
        if self.mask_positives and "passage_numbers" in batch:
            false_negative_mask = mask_false_negatives(batch["passage_numbers"], batch["positive_numbers"])
        teacher = all_gather_with_grad(batch["teacher"]) / self.teacher_temperature if self.weight else None
        pairs = [(queries, passages), *((self._prefix(queries, n), self._prefix(passages, n)) for n in self.prefixes)]
        return torch.stack([self._of_pair(*pair, false_negative_mask, teacher) for pair in pairs]).mean()

    def _prefix(self, vectors: Tensor, numbers: int) -> Tensor:
        """Cuts vectors to their first numbers, normalised again, as an index of so many searches them."""
        kept = vectors[:, :numbers]
        return functional.normalize(kept, dim=-1) if self.normalise else kept

    def _of_pair(
        self, queries: Tensor, passages: Tensor, false_negative_mask: Tensor | None, teacher: Tensor | None
    ) -> Tensor:
        loss = contrastive_loss(queries, passages, self.temperature, false_negative_mask)
        if teacher is None:
            return loss
        return loss + self.weight * distillation_loss(queries, passages, self.temperature, teacher)

    def encode(
        self, model: Any, ids: Tensor, mask: Tensor, counts: Tensor | None = None, sides: Sequence[int] = ()
    ) -> Tensor:
        """Encodes right-padded rows, float32 [rows, dimension]; `counts` as in `pooling.pool`.

        Rows of like length go through the model together, at most `gradient_cache` of them where there is one, and fewer
        after memory ran out (`passes.divisor`); the pool of negatives stays the same. What all rows of a side begin with
        goes through the model once.

        Args:
            model: The inner model, perhaps wrapped.
            ids: int64 [rows, width].
            mask: int64 [rows, width]; 1 on real tokens.
            counts: int64 [rows], or None.
            sides: Rows of each side, which lie one behind another; none = all rows are of one side.
        """
        lengths = mask.sum(dim=1)
        taken = read(mask, self.pooling, counts)
        # What the pooling reads is no part of a prefix.
        groups = self._groups(model, ids, taken.int().argmax(dim=1), sides)
        prefixes = {row: prefix for rows, prefix in groups for row in rows}
        chunks = agreed(self._chunked(model, groups, lengths), ids.device)
        parts = []
        for chunk in chunks:
            rows, prefix = torch.tensor(chunk, device=ids.device), prefixes[chunk[0]]
            columns = slice(prefix.length, int(lengths[rows].max()))
            ids_of, mask_of, taken_of = (part[rows, columns] for part in (ids, mask, taken))
            parts.append(self._chunk(model, ids_of, mask_of, taken_of, prefix))
        order = torch.tensor([row for chunk in chunks for row in chunk], device=ids.device)
        return torch.cat(parts)[order.argsort()]

    def _chunked(self, model: Any, groups: list[Group], lengths: Tensor) -> list[list[int]]:
        limits, chunks = limits_of(model, lengths.device, self._at_once(len(lengths))), []
        for rows, prefix in groups:
            found = chunked((lengths[rows] - prefix.length).tolist(), limits)
            chunks += [[rows[place] for place in chunk] for chunk in found]
        return chunks

    def _groups(self, model: Any, ids: Tensor, room: Tensor, sides: Sequence[int]) -> list[Group]:
        """Rows, each group with the prefix that it shares; without any prefix all rows are one group."""
        rows = list(range(len(ids)))
        if self.masked:
            return [(rows, NOTHING)]
        parts = [part.tolist() for part in torch.arange(len(ids)).split(list(sides) or [len(ids)])]
        # All processes share as much, so that all call the model equally often.
        lengths = least_of_all([self.sharing.length(ids[part], room[part]) for part in parts], ids.device)
        found = zip(parts, lengths, strict=True)
        prefixes = [self.sharing.prefix(model, ids[part], length) for part, length in found]
        if not any(prefix.length for prefix in prefixes):
            return [(rows, NOTHING)]
        return list(zip(parts, prefixes, strict=True))

    def _at_once(self, rows: int) -> int:
        """Number of rows that go through the model together, at most; 0 = as many as it takes."""
        return self.gradient_cache if self.divisor == 1 else -(-(self.gradient_cache or rows) // self.divisor)

    def _chunk(self, model: Any, ids: Tensor, mask: Tensor, taken: Tensor, prefix: SharedPrefix) -> Tensor:
        encode = functools.partial(self._vectors, prefix=prefix)
        if self.gradient_cache or self.divisor > 1:
            return checkpointed(encode, model, ids, mask, taken)
        return encode(model, ids, mask, taken)

    def _vectors(self, model: Any, ids: Tensor, mask: Tensor, taken: Tensor, prefix: SharedPrefix) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask if self.masked else None, **prefix.inputs(len(ids))}
        hidden, taken = self.last_layer.states(model, taken, **inputs)
        return pool(hidden, taken, self.pooling, normalise=self.normalise)


def _both_sides(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stacks ids, mask and pooled counts of queries and passages, which go through the model together."""
    width = max(batch["query_ids"].shape[1], batch["passage_ids"].shape[1])
    ids, mask = (
        torch.cat([functional.pad(side, (0, width - side.shape[1])) for side in sides])
        for sides in ((batch[f"query_{name}"], batch[f"passage_{name}"]) for name in ("ids", "mask"))
    )
    counts = torch.cat([batch["query_pooled"], batch["passage_pooled"]]) if "query_pooled" in batch else None
    return ids, mask, counts
