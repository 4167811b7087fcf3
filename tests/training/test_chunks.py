"""Rows in chunks of like length: what is cut where, and that loss and gradients are those of one pass."""

from __future__ import annotations

import doctest
import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation.consecutive import TextPair
from llm_retriever.adaptation.ebae_ebar import EbaeEbarLoss, JointCollator
from llm_retriever.adaptation.query_likelihood import Pair, PairCollator, QueryLikelihoodLoss
from llm_retriever.contrastive.loss import ContrastiveLoss, contrastive_loss
from llm_retriever.data.collection import Collection
from llm_retriever.methods import EBAE_EBAR, NEW_TOKENS, QUERY_LIKELIHOOD, method
from llm_retriever.models.attention import set_attention
from llm_retriever.models.batches import padded
from llm_retriever.models.pooling import read
from llm_retriever.models.shared_prefix import NOTHING
from llm_retriever.training import chunks
from llm_retriever.training.chunks import ByLength, Limits, chunked
from llm_retriever.training.passes import DIVISOR
from llm_retriever.training.vocabulary import extended

QUERIES, GROUP = 12, 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are fastest with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cost(found: list[list[int]], lengths: list[int], limits: Limits) -> int:
    return sum(len(chunk) * max(lengths[row] for row in chunk) + limits.overhead for chunk in found)


@pytest.mark.parametrize("limits", [Limits(60), Limits(60, 3), Limits(1000, 0, 25), Limits(60, 4, 10)])
def test_no_way_to_cut_the_sorted_rows_costs_less(limits):
    lengths = random.Random(3).choices(range(1, 40), k=9)
    order = sorted(lengths, reverse=True)
    least = float("inf")
    for number in range(9):
        for cuts in itertools.combinations(range(1, 9), number):
            parts = [order[a:b] for a, b in itertools.pairwise((0, *cuts, 9))]
            fits = all(len(p) == 1 or len(p) * p[0] <= limits.tokens for p in parts)
            if fits and (not limits.rows or max(map(len, parts)) <= limits.rows):
                least = min(least, sum(len(p) * p[0] + limits.overhead for p in parts))
    assert cost(chunked(lengths, limits), lengths, limits) == least


def test_every_row_is_in_one_chunk_and_the_longest_come_first():
    lengths = random.Random(1).choices(range(1, 200), k=300)
    found = chunked(lengths, Limits(2048, 16, 64))
    assert sorted(itertools.chain.from_iterable(found)) == list(range(300))
    inside = [lengths[row] for chunk in found for row in chunk]
    assert inside == sorted(lengths, reverse=True)
    assert max(map(len, found)) <= 16
    assert sum(len(chunk) * lengths[chunk[0]] for chunk in found) < 1.1 * sum(lengths)


def test_a_row_longer_than_the_budget_goes_alone():
    assert chunked([5, 90, 4], Limits(20, overhead=1)) == [[1], [0, 2]]


def test_a_process_with_fewer_chunks_halves_its_largest_until_it_has_as_many():
    assert chunks._split([[4, 1, 3, 0], [2]], 4) == [[4], [1], [3, 0], [2]]
    assert chunks._split([[1], [0]], 2) == [[1], [0]]


def test_examples_in_the_documentation():
    assert doctest.testmod(chunks).failed == 0


def rows_of(number: int, seed: int) -> dict[str, Tensor]:
    draw = random.Random(seed)
    rows = [[draw.randrange(4, 300) for _ in range(draw.randrange(9, 150))] for _ in range(number)]
    return padded(rows, 2, "right")


def tuning_batch(pooled: bool) -> dict[str, Tensor]:
    batch = {}
    for seed, (name, number) in enumerate((("query", QUERIES), ("passage", QUERIES * GROUP))):
        side = rows_of(number, seed)
        batch |= {f"{name}_ids": side["input_ids"], f"{name}_mask": side["attention_mask"]}
        if pooled:
            batch[f"{name}_pooled"] = torch.tensor([1 + row % 8 for row in range(number)])
    return batch


def gradients(model: Any, value: Tensor) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def passes_of(model: Any) -> list[int]:
    """Rows of every pass from now on."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, named: sizes.append(len(named["input_ids"])), with_kwargs=True)
    return sizes


@pytest.mark.parametrize(
    ("name", "recipe"), [("llm-ql", "default"), ("llama2vec", "default"), ("llm2vec", "default"), ("llm2vec", "paper")]
)
@pytest.mark.parametrize("gradient_cache", [0, 5])
def test_tuning_in_chunks_is_tuning_in_one_pass(backbone_directory, name, recipe, gradient_cache):
    row = method(name, recipe)
    row = replace(row, tuning=replace(row.tuning, temperature=0.05, gradient_cache=gradient_cache))
    model, loss, batch = (
        AutoModel.from_pretrained(backbone_directory),
        ContrastiveLoss(row),
        tuning_batch(row.pooling != "last"),
    )
    set_attention(model, row.attention)
    sides = [[batch[f"{side}_{part}"] for part in ("ids", "mask")] for side in ("query", "passage")]
    pooled = [batch.get(f"{side}_pooled") for side in ("query", "passage")]
    taken = [read(side[1], row.pooling, counts) for side, counts in zip(sides, pooled, strict=True)]
    whole = [loss._vectors(model, *side, read_at, NOTHING) for side, read_at in zip(sides, taken, strict=True)]
    expected = gradients(model, contrastive_loss(*whole, 0.05))
    sizes = passes_of(model)
    found = gradients(model, loss(model, batch))
    assert len(sizes) > 3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


TEXTS = [
    "The engine, built by hand in the north, needs water. " * 6,
    "Planet bread violin: seven of them came home.",
    "Under the moon the bridge moves slowly? Nobody knows. " * 3,
]


def ql_batch(tokenizer: Any, collection: Path, side: str, loss_on: str) -> dict[str, Tensor]:
    recipe = replace(QUERY_LIKELIHOOD["default"], loss_on=loss_on)
    source = Collection.open(collection)
    ids = [p.id for p in source.passages()][:30]
    collate = PairCollator(recipe, ("eos",), tokenizer, source.lookup(), side)
    return collate([Pair("which river is old " * (1 + i % 9), passage, f"{i}") for i, passage in enumerate(ids)])


@pytest.mark.parametrize(("side", "loss_on"), [("left", "query"), ("right", "all"), ("right", "query")])
@pytest.mark.parametrize("block", [True, False], ids=["block", "causal"])
def test_query_likelihood_in_chunks_is_the_same(backbone_directory, collection_directory, side, loss_on, block):
    model = AutoModelForCausalLM.from_pretrained(backbone_directory)
    batch = ql_batch(AutoTokenizer.from_pretrained(backbone_directory), collection_directory, side, loss_on)
    loss = QueryLikelihoodLoss(block)
    expected = gradients(model, loss(model, batch))
    sizes = passes_of(model)
    found = gradients(model, ByLength(loss)(model, batch))
    assert len(sizes) > 1
    shares = (side, loss_on) == ("right", "query")
    assert (1 in sizes) == shares, "what all rows begin with goes through the model once, where no loss is on it"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_after_memory_ran_out_tuning_has_the_same_gradients_in_smaller_passes(backbone_directory, monkeypatch):
    batch, row = tuning_batch(pooled=False), method("llm-ql")
    row = replace(row, tuning=replace(row.tuning, temperature=0.05))
    number = len(batch["query_ids"]) + len(batch["passage_ids"])
    model = AutoModel.from_pretrained(backbone_directory)
    expected = gradients(model, ContrastiveLoss(row)(model, batch))
    for cache, factor, most in ((0, 2, -(-number // 2)), (0, 8, -(-number // 8)), (6, 2, 3), (1, 4, 1)):
        monkeypatch.setenv(DIVISOR, str(factor))
        loss = ContrastiveLoss(replace(row, tuning=replace(row.tuning, gradient_cache=cache)))
        loss(model, batch)  # Tries the model, with two short rows.
        sizes = passes_of(model)
        found = gradients(model, loss(model, batch))
        assert max(sizes) <= most
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("factor", [2, 8, 64])
def test_after_memory_ran_out_query_likelihood_keeps_only_logits_of_smaller_passes(
    factor, backbone_directory, collection_directory, monkeypatch
):
    model = AutoModelForCausalLM.from_pretrained(backbone_directory)
    batch = ql_batch(AutoTokenizer.from_pretrained(backbone_directory), collection_directory, "left", "query")
    loss, kept, before = QueryLikelihoodLoss(True), list[int](), list[int]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: before.append(t.nbytes) or t, lambda t: t):
        value = loss(model, batch)
    expected = gradients(model, value)
    monkeypatch.setenv(DIVISOR, str(factor))
    by_length = ByLength(loss)
    by_length(model, batch)  # Tries the model, with two short rows.
    sizes = passes_of(model)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        value = by_length(model, batch)
    assert max(sizes) <= -(-30 // factor)
    assert sum(kept) < sum(before) / 5
    torch.testing.assert_close(gradients(model, value), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ebae_and_ebar_in_chunks_are_the_same(backbone_directory, side):
    with extended(backbone_directory, NEW_TOKENS) as directory:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    recipe = replace(EBAE_EBAR["released"], passage_length=120)
    pairs = [TextPair(TEXTS[i % 3] * (1 + i % 2), TEXTS[(i + 1) % 3]) for i in range(20)]
    batch, loss = JointCollator(recipe, method("llama2vec"), tokenizer, side)(pairs), EbaeEbarLoss(recipe)
    expected = gradients(model, loss(model, batch))
    sizes = passes_of(model)
    found = gradients(model, ByLength(loss)(model, batch))
    assert len(sizes) > 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
