"""The pieces of work whose rates are measured: a call, and by count the tokens and operations that it needs.

A training step is a forward and a backward pass in bf16, without the optimiser, on one batch.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import roofline
import torch
import two_prompts
from torch import Tensor

from benchmarks.gpu import inputs
from benchmarks.gpu.inputs import Shape
from llm_retriever.adaptation.query_likelihood import Pair, PairCollator, QueryLikelihoodLoss
from llm_retriever.contrastive.dataset import Group, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import QUERY_LIKELIHOOD, Lora, Method, method
from llm_retriever.models import last_layer, shared_prefix
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.training.chunks import ByLength
from llm_retriever.training.weights import attach_lora

PASSAGES = 8
"""Of a query."""


@dataclass(frozen=True)
class Work:
    """A piece of work, ready.

    Attributes:
        call: Does it once, and gives its result: vectors, or a loss.
        tokens: Without padding.
        operations: Without padding, and without what gradient checkpointing computes again.
    """

    call: Callable[[], Any]
    tokens: int
    operations: float


Builder = Callable[[Shape, str], Work]


def retriever_of(shape: Shape, device: str, name: str = "llm-ql", dtype: torch.dtype = torch.bfloat16) -> Retriever:
    """A retriever of random weights."""
    model = inputs.random_model(shape.config, device, head=False, dtype=dtype)
    return Retriever(model, inputs.tokenizer(), RetrieverCard.of(method(name), Lineage("random weights")))


def texts_of(shape: Shape) -> list[str]:
    """Passages to encode: many of the small model, fewer of the large one."""
    return [passage.text for passage in inputs.passages(64 * shape.queries)]


def encoding(shape: Shape, device: str) -> Work:
    """Passages become vectors, tokenisation included."""
    retriever, texts = retriever_of(shape, device), texts_of(shape)
    lengths = [len(row) for row in retriever.tokenise_passages(texts)]
    needed = roofline.operations(retriever.model, lengths, passes=1, read=1)
    return Work(lambda: retriever.encode_passages(texts), sum(lengths), needed)


def tuning(checkpointed: bool, shape: Shape, device: str) -> Work:
    """A contrastive LoRA step with 8 passages a query."""
    row = replace(method("llm-ql"), tuning=replace(method("llm-ql").tuning, temperature=0.05))
    batch = groups(row, shape.queries)
    lengths = [n for side in ("query", "passage") for n in batch[f"{side}_mask"].sum(dim=1).tolist()]
    base = inputs.random_model(shape.config, device, head=False)
    model = attach_lora(base, Lora(dropout=0.0), seed=17)
    adapter = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    needed = roofline.operations(base, lengths, passes=2, adapter=adapter, read=1)
    return Work(step(model, ContrastiveLoss(row), batch, device, checkpointed), sum(lengths), needed)


def groups(row: Method, queries: int) -> dict[str, Tensor]:
    """A batch of stage two."""
    found = inputs.passages(queries * PASSAGES)
    known: Any = {passage.id: passage for passage in found}
    collate = GroupCollator(row, inputs.tokenizer(), known)
    parts = [found[start : start + PASSAGES] for start in range(0, len(found), PASSAGES)]
    return collate([Group(inputs.query(part[0]), tuple(passage.id for passage in part)) for part in parts])


def likelihood(shape: Shape, device: str) -> Work:
    """A query-likelihood step on all weights."""
    found = inputs.passages(shape.rows)
    known: Any = {passage.id: passage for passage in found}
    collate = PairCollator(QUERY_LIKELIHOOD["default"], ("eos",), inputs.tokenizer(), known)
    batch = collate([Pair(inputs.query(passage), passage.id, passage.id) for passage in found])
    lengths, head = batch["attention_mask"].sum(dim=1).tolist(), int(batch["targets"].sum())
    model = inputs.random_model(shape.config, device, head=True)
    needed = roofline.operations(model.model, lengths, passes=3, head=head)
    loss = ByLength(QueryLikelihoodLoss(True))
    return Work(step(model, loss, batch, device, shape.checkpointed), sum(lengths), needed)


def prompts(joint: bool, shape: Shape, device: str) -> Work:
    """An EBAE/EBAR step on all weights: one pass for both prompts, or a pass for each; counted is what one pass needs."""
    batch = two_prompts.batch(shape.config.vocab_size, shape.rows)
    model = inputs.random_model(shape.config, device, head=True)
    lengths, head = [two_prompts.WIDTH] * shape.rows, 2 * two_prompts.EMBEDDING * shape.rows
    needed = roofline.operations(model.model, lengths, passes=3, head=head)
    loss: Any = two_prompts.joint() if joint else two_prompts.apart
    return Work(step(model, loss, batch, device, shape.checkpointed), sum(lengths), needed)


def step(model: Any, loss: Any, batch: dict[str, Tensor], device: str, checkpointed: bool) -> Callable[[], float]:
    """A forward and a backward pass, as the Trainer makes them."""
    here = {name: values.to(device) for name, values in batch.items()}
    model.train()
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def call() -> float:
        model.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            value = loss(model, here)
        value.backward()
        return float(value.detach())

    return call


BUILDERS: dict[str, Builder] = {
    "encode": encoding,
    "contrastive LoRA": functools.partial(tuning, False),
    "contrastive LoRA, checkpointed": functools.partial(tuning, True),
    "query likelihood": likelihood,
    "EBAE/EBAR, joint": functools.partial(prompts, True),
    "EBAE/EBAR, two passes": functools.partial(prompts, False),
}


PREFIX, LAST_LAYER = "shared prefix", "last layer where it is read"
"""Ways to compute less, which are off on devices where they were not measured."""


@contextlib.contextmanager
def shortcuts(device: str, *used: str) -> Iterator[None]:
    """Computes less in some ways wherever that is possible, and in no others."""
    before, devices = dict(shared_prefix.OVERHEAD), set(last_layer.DEVICES)
    shared_prefix.OVERHEAD.clear()
    last_layer.DEVICES.clear()
    if PREFIX in used:
        shared_prefix.OVERHEAD[device] = 0
    if LAST_LAYER in used:
        last_layer.DEVICES.add(device)
    try:
        yield
    finally:
        shared_prefix.OVERHEAD.clear()
        shared_prefix.OVERHEAD.update(before)
        last_layer.DEVICES.clear()
        last_layer.DEVICES.update(devices)
