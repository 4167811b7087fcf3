"""A last layer that computes only what is read: vectors, losses and gradients are those of whole layers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from llm_retriever.adaptation.query_likelihood import QueryLikelihoodLoss
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import Lora, method
from llm_retriever.models import last_layer
from llm_retriever.models.attention import set_attention
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.last_layer import LastLayer, can_narrow, columns_of
from llm_retriever.models.layers import layer_lists
from llm_retriever.models.product_attention import use_products
from llm_retriever.training.chunks import ByLength
from llm_retriever.training.weights import attach_lora
from tests.models.test_shared_prefix import GROUPED, SHARING, batch_of, loss_of, random_model, rows_of

NARROW = sorted(set(SHARING) - {"GPT2Config", "GPTNeoXConfig"})
"""Architectures whose layers are given their cache under the usual name."""


def last_positions(model: Any) -> list[int]:
    """The positions that the last layer's feed-forward part computes in each pass from now on."""
    numbers: list[int] = []
    last = layer_lists(model)[0][-1]
    getattr(last, "mlp", getattr(last, "fc1", None)).register_forward_pre_hook(
        lambda _, given: numbers.append(given[0][..., 0].numel())
    )
    return numbers


def trained(model: Any, loss: Any, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    value = loss(model, batch)
    value.backward()
    return value.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_both_ways(monkeypatch: pytest.MonkeyPatch, model: Any, loss: Any, batch: dict[str, torch.Tensor]) -> None:
    trained(model, loss, batch)  # Tries the model.
    computed = last_positions(model)
    found, narrow = trained(model, loss, batch), sum(computed)
    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(last_layer, "DEVICES", set())
        torch.testing.assert_close(found, trained(model, loss, batch), atol=1e-5, rtol=1e-5)
    assert narrow < sum(computed) / 3


@pytest.mark.parametrize("name", NARROW)
def test_losses_and_all_gradients_are_those_of_a_whole_layer(monkeypatch, name):
    check_both_ways(monkeypatch, random_model(name, SHARING[name]), loss_of(), batch_of())


@pytest.mark.parametrize("attention", ["eager", "products"])
def test_whatever_computes_attention(monkeypatch, attention):
    model = random_model("LlamaConfig", GROUPED)
    use_products(model) if attention == "products" else model.set_attn_implementation(attention)
    check_both_ways(monkeypatch, model, loss_of(), batch_of())


def test_with_gradient_cache_and_for_adapters(monkeypatch):
    tuned = attach_lora(random_model("LlamaConfig", GROUPED), Lora(rank=4, alpha=8, dropout=0.0), seed=0)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    check_both_ways(monkeypatch, tuned, loss_of(gradient_cache=5), batch_of())


def test_several_tokens_at_the_end_are_read(monkeypatch):
    loss, batch = loss_of("llama2vec"), batch_of()
    batch |= {f"{side}_pooled": torch.full((len(batch[f"{side}_ids"]),), 3) for side in ("query", "passage")}
    check_both_ways(monkeypatch, random_model("LlamaConfig", GROUPED), loss, batch)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("block", [True, False], ids=["block", "causal"])
def test_query_likelihood_reads_its_targets_alone(monkeypatch, side, block):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
    lengths, width = [30, 24, 40, 18], 40
    first = [width - n if side == "left" else 0 for n in lengths]
    column = torch.arange(width)
    mask = torch.stack([(column >= f) & (column < f + n) for f, n in zip(first, lengths, strict=True)])
    end = torch.tensor([f + n for f, n in zip(first, lengths, strict=True)])
    batch = {"input_ids": torch.randint(3, 300, (4, width)) * mask, "attention_mask": mask.long()}
    batch |= {"embedding": end - 7, "targets": mask & (column >= (end - 6)[:, None])}
    check_both_ways(monkeypatch, model, ByLength(QueryLikelihoodLoss(block)), batch)


@pytest.mark.parametrize("name", sorted(SHARING))
def test_vectors_are_those_of_a_whole_layer(monkeypatch, name):
    card = RetrieverCard.of(method("llm-ql"), Lineage("random"))
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    retriever, rows = Retriever(random_model(name, SHARING[name]), tokenizer, card), rows_of("passage", 24)
    assert can_narrow(retriever.model) == (name in NARROW)
    found = retriever.embed("passage", rows)
    monkeypatch.setattr(last_layer, "DEVICES", set())
    np.testing.assert_allclose(found, retriever.embed("passage", rows), atol=1e-5)


def test_a_row_alone_has_the_vector_that_it_has_among_others():
    card = RetrieverCard.of(method("llm-ql"), Lineage("random"))
    retriever = Retriever(random_model("LlamaConfig", GROUPED), SimpleNamespace(pad_token_id=0, eos_token_id=2), card)
    rows = rows_of("passage", 6)
    alone = np.concatenate([retriever.embed("passage", [row]) for row in rows])
    np.testing.assert_allclose(retriever.embed("passage", rows), alone, atol=1e-5)


def test_where_most_is_read_and_where_a_model_cannot_everything_is_computed():
    model, ids = random_model("LlamaConfig", GROUPED).eval(), torch.arange(3, 23).view(2, 10)
    for read, positions in ((1, 1), (5, 5), (6, 10)):
        wanted = torch.arange(10).expand(2, 10) >= 10 - read
        states, kept = LastLayer().states(model, wanted, input_ids=ids, use_cache=False)
        assert states.shape[1] == kept.shape[1] == positions
        torch.testing.assert_close(states[kept], model(ids, use_cache=False)[0][wanted], atol=1e-5, rtol=1e-5)
    set_attention(model, "bidirectional")
    assert not can_narrow(model)
    checkpointed = random_model("LlamaConfig", GROUPED)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    assert not can_narrow(checkpointed)
    assert can_narrow(checkpointed.eval())


def test_a_model_keeps_its_mode_when_it_is_tried():
    model = random_model("LlamaConfig", GROUPED)
    model.layers[0].eval()
    assert can_narrow(model)
    assert model.training
    assert not model.layers[0].mlp.training


def test_columns_come_in_their_order_and_shorter_rows_are_filled_up():
    read = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    columns = columns_of(read, 3)
    assert columns[0].tolist() == [1, 3, 4]
    assert read.gather(1, columns).tolist() == [[True, True, True], [True, False, False], [True, True, False]]


def test_dropout_is_drawn_for_what_is_computed():
    """Narrow and whole layers draw other random numbers; both train."""
    model = attach_lora(random_model("LlamaConfig", GROUPED), Lora(rank=4, alpha=8, dropout=0.3), seed=0)
    loss = ContrastiveLoss(replace(method("llm-ql")))
    computed, (value, gradients) = last_positions(model), trained(model, loss, batch_of())
    assert sum(computed[-2:]) <= 36  # The last passes: a position a row.
    assert np.isfinite(value)
    assert any(bool(gradient.any()) for gradient in gradients.values())
