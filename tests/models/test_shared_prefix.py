"""Rows that share a prefix: vectors, losses and gradients are those of rows that do not, on models of many architectures."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import Lora, method
from llm_retriever.models import shared_prefix
from llm_retriever.models.attention import set_attention
from llm_retriever.models.batches import padded
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.shared_prefix import can_share, common_length
from llm_retriever.training.weights import attach_lora

SMALL = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
SMALL |= {"intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0}
GROUPED = {**SMALL, "num_key_value_heads": 2}
OF_GPT = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0}
SHARING: dict[str, dict[str, Any]] = {
    "LlamaConfig": GROUPED,
    "Qwen2Config": GROUPED,
    "Qwen3Config": {**GROUPED, "head_dim": 8},
    "MistralConfig": {**GROUPED, "sliding_window": 20},
    "Gemma3TextConfig": {**GROUPED, "head_dim": 8, "sliding_window": 20},
    "GPTNeoXConfig": SMALL,
    "GPT2Config": {**OF_GPT, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "OPTConfig": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
}
ALONE: dict[str, dict[str, Any]] = {
    "MambaConfig": {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "OPTConfig": {**SHARING["OPTConfig"], "dropout": 0.1},
}
PREFIXES = {"query": 11, "passage": 16}


def random_model(name: str, settings: dict[str, Any]) -> Any:
    """An inner model whose weights are large enough for attention to matter."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(getattr(transformers, name)(**settings), dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.2)
    return model.train()


def rows_of(side: str, number: int) -> list[list[int]]:
    draw = random.Random(side)
    prefix = [draw.randrange(4, 300) for _ in range(PREFIXES[side])]
    return [[*prefix, *(draw.randrange(4, 300) for _ in range(draw.randrange(1, 40)))] for _ in range(number)]


def batch_of(pooled: bool = False) -> dict[str, Tensor]:
    batch = {}
    for side, number in (("query", 12), ("passage", 24)):
        rows = rows_of(side, number)
        made = padded(rows, 0, "right")
        batch |= {f"{side}_ids": made["input_ids"], f"{side}_mask": made["attention_mask"]}
        if pooled:
            batch[f"{side}_pooled"] = torch.tensor([1 + i % (len(row) - 9) for i, row in enumerate(rows)])
    return batch


def loss_of(name: str = "llm-ql", **changes: Any) -> ContrastiveLoss:
    row = method(name)
    return ContrastiveLoss(replace(row, tuning=replace(row.tuning, temperature=0.05, **changes)))


def trained(model: Any, loss: ContrastiveLoss, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor], int]:
    """The loss, all gradients, and the tokens that went through the model."""
    tokens: list[int] = []
    model.zero_grad()
    hook = model.register_forward_pre_hook(
        lambda _, __, named: tokens.append(named["input_ids"].numel()), with_kwargs=True
    )
    value = loss(model, batch)
    value.backward()
    hook.remove()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, sum(tokens)


def both_ways(
    monkeypatch: pytest.MonkeyPatch, model: Any, loss: ContrastiveLoss, batch: dict[str, Tensor]
) -> tuple[int, int]:
    """Trains with a shared prefix and without one, compares, and gives the tokens of each way."""
    found = trained(model, loss, batch)
    with monkeypatch.context() as patch:
        patch.setattr(shared_prefix, "OVERHEAD", {})
        expected = trained(model, loss, batch)
    torch.testing.assert_close(found[:2], expected[:2], atol=1e-5, rtol=1e-5)
    return found[2], expected[2]


@pytest.mark.parametrize("name", sorted(SHARING))
def test_losses_and_all_gradients_are_those_of_whole_rows(monkeypatch, name):
    model, loss = random_model(name, SHARING[name]), loss_of()
    trained(model, loss, batch_of())  # Tries the model, which goes through it as well.
    found, expected = both_ways(monkeypatch, model, loss, batch_of())
    assert found < expected - 300


@pytest.mark.parametrize("changes", [{"gradient_cache": 5}, {}], ids=["gradient cache", "mean"])
def test_with_gradient_cache_and_a_mean_over_tokens_too(monkeypatch, changes):
    model, loss = random_model("LlamaConfig", GROUPED), loss_of(**changes)
    found, expected = both_ways(monkeypatch, model, loss, batch_of(pooled=not changes))
    assert found < expected


def test_adapters_learn_the_same_on_a_shared_prefix(monkeypatch):
    tuned = attach_lora(random_model("LlamaConfig", GROUPED), Lora(rank=4, alpha=8, dropout=0.0), seed=0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    found, expected = both_ways(monkeypatch, tuned, loss_of(), batch_of())
    assert found < expected


@pytest.mark.parametrize("name", sorted(ALONE))
def test_a_model_that_cannot_share_reads_whole_rows(monkeypatch, name):
    model, loss = random_model(name, ALONE[name]), loss_of()
    assert not can_share(model)
    trained(model, loss, batch_of())  # Tries the model, which goes through it as well.
    torch.manual_seed(3)
    first = trained(model, loss, batch_of())
    with monkeypatch.context() as patch:
        patch.setattr(shared_prefix, "OVERHEAD", {})
        torch.manual_seed(3)
        torch.testing.assert_close(first, trained(model, loss, batch_of()), atol=0, rtol=0)


def test_neither_checkpointed_nor_bidirectional_nor_dropping_models_share():
    model = random_model("LlamaConfig", GROUPED)
    assert can_share(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert not can_share(model)
    assert can_share(model.eval())
    set_attention(model, "bidirectional")
    assert not can_share(model)
    dropping = attach_lora(random_model("LlamaConfig", GROUPED), Lora(rank=4, alpha=8, dropout=0.1), seed=0)
    assert not can_share(dropping)
    assert can_share(dropping.eval())


@pytest.mark.parametrize("name", sorted(SHARING))
def test_vectors_are_those_of_whole_rows(monkeypatch, name):
    card = RetrieverCard.of(method("llm-ql"), Lineage("random"))
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    retriever, rows = Retriever(random_model(name, SHARING[name]), tokenizer, card), rows_of("passage", 24)
    lengths: list[int] = []
    retriever.model.register_forward_pre_hook(
        lambda _, __, named: lengths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    found = retriever.embed("passage", rows)
    assert lengths[-1] == max(map(len, rows)) - PREFIXES["passage"]
    monkeypatch.setattr(shared_prefix, "OVERHEAD", {})
    np.testing.assert_allclose(found, retriever.embed("passage", rows), atol=1e-5)
    assert lengths[-1] == max(map(len, rows))


@pytest.mark.parametrize("pooling", ["mean", "weighted mean", "cls"])
def test_a_pooling_that_reads_all_tokens_leaves_no_room_for_a_prefix(monkeypatch, pooling):
    card = replace(RetrieverCard.of(method("llm-ql"), Lineage("random")), pooling=pooling)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    retriever, rows = Retriever(random_model("LlamaConfig", GROUPED), tokenizer, card), rows_of("passage", 24)
    found = retriever.embed("passage", rows)
    monkeypatch.setattr(shared_prefix, "OVERHEAD", {})
    np.testing.assert_allclose(found, retriever.embed("passage", rows), atol=1e-5)


def test_every_row_keeps_what_is_not_room_for_a_prefix():
    ids = torch.tensor([[5, 6, 7, 8, 0], [5, 6, 7, 9, 4], [5, 6, 7, 8, 8]])
    assert common_length(ids, torch.tensor([3, 4, 4])) == 3
    assert common_length(ids, torch.tensor([3, 2, 4])) == 2
    assert common_length(ids[:, 3:], torch.tensor([2, 2, 2])) == 0
    assert common_length(ids[:1], torch.tensor([-1])) == 0


def test_a_short_prefix_and_a_pass_that_costs_more_are_not_shared():
    sharing, ids = shared_prefix.PrefixSharing(), torch.arange(30).repeat(4, 1)
    for rows, room, length in ((4, 7, 0), (4, 21, 0), (4, 22, 22), (3, 29, 0)):
        assert sharing.length(ids[:rows], torch.full((rows,), room)) == length
