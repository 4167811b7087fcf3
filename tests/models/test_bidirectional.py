"""Bidirectional models: every token sees every other one, in any batch, by the configuration alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from llm_retriever import methods
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.models.attention import set_attention
from llm_retriever.models.batches import padded
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.masks import LEAST
from llm_retriever.training.train import TrainingRun
from llm_retriever.training.weights import load_backbone
from tests.conftest import passages

TEXTS = [row["text"] for row in passages(4)] + ["bread", "a bridge", "glacier " * 40]
BOTH = pytest.mark.parametrize("implementation", ["eager", "sdpa"])


def model_of(directory: Path, attention: str, implementation: str = "sdpa") -> Any:
    model = AutoModel.from_pretrained(directory, attn_implementation=implementation, dtype=torch.float32).eval()
    set_attention(model, attention)
    return model


@torch.inference_mode()
def states(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


@BOTH
@pytest.mark.parametrize("masked", [True, False])
def test_in_a_batch_of_one_the_first_token_sees_the_last(backbone_directory, implementation, masked):
    ids = torch.arange(20, 32)[None]
    changed = ids.clone()
    changed[0, -1] = 90
    mask = torch.ones_like(ids) if masked else None
    both_ways = model_of(backbone_directory, "bidirectional", implementation)
    causal = model_of(backbone_directory, "causal", implementation)
    assert (states(both_ways, ids, mask) - states(both_ways, changed, mask))[0, 0].abs().max() > 1e-2
    assert torch.equal(states(causal, ids, mask)[0, :-1], states(causal, changed, mask)[0, :-1])


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_mask_of_zeros_equals_a_model_that_is_not_causal(backbone_directory, implementation, side):
    batch = padded([list(range(10, 30)), [40, 41, 42], list(range(50, 61))], pad=0, side=side)
    real = batch["attention_mask"].bool()
    seen = real[:, None, None, :].expand(-1, 1, real.shape[1], -1)
    zeros = torch.zeros(seen.shape).masked_fill(~seen, LEAST[torch.float32])
    by_mask = states(model_of(backbone_directory, "causal", implementation), batch["input_ids"], zeros)
    by_config = states(model_of(backbone_directory, "bidirectional", implementation), **_given(batch))
    torch.testing.assert_close(by_mask[real], by_config[real], atol=1e-6, rtol=0)


def _given(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"ids": batch["input_ids"], "mask": batch["attention_mask"]}


def test_eager_equals_sdpa(backbone_directory):
    batch = padded([list(range(10, 30)), [40, 41, 42]], pad=0)
    eager, sdpa = (
        states(model_of(backbone_directory, "bidirectional", implementation), **_given(batch))
        for implementation in ("eager", "sdpa")
    )
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(eager[real], sdpa[real], atol=1e-5, rtol=0)


@BOTH
def test_a_saved_model_remembers_that_it_is_not_causal(backbone_directory, tmp_path, implementation):
    model = load_backbone(backbone_directory, TrainingRun("a test"), tune="full", head=True, attention="bidirectional")
    model.save_pretrained(tmp_path)
    ids = torch.arange(20, 32)[None]
    for kind in (AutoModel, AutoModelForCausalLM):
        again = kind.from_pretrained(tmp_path, attn_implementation=implementation, dtype=torch.float32).eval()
        assert again.config.is_causal is False
        expected = states(model_of(backbone_directory, "bidirectional", implementation), ids, torch.ones_like(ids))
        torch.testing.assert_close(states(again.base_model, ids, torch.ones_like(ids)), expected, atol=1e-6, rtol=0)


@pytest.fixture(scope="module", params=["default", "paper"])
def retriever(request: pytest.FixtureRequest, backbone_directory: Path) -> Retriever:
    """A random model under the row llm2vec: last token (default), or the mean over the text (paper)."""
    row = dataclasses.replace(methods.method("llm2vec", request.param), query_length=160)
    assert row.pooling == {"default": "last", "paper": "text"}[request.param]
    return Retriever.on_backbone(backbone_directory, RetrieverCard.of(row, Lineage("random")), precision="fp32")


def encoded(retriever: Retriever, side: str, texts: list[str], **options: Any) -> np.ndarray:
    return (
        retriever.encode_queries(texts, **options) if side == "query" else retriever.encode_passages(texts, **options)
    )


@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_vector_depends_neither_on_its_batch_nor_on_its_neighbours(retriever, side):
    alone = np.concatenate([encoded(retriever, side, [text]) for text in TEXTS])
    for texts in (TEXTS, TEXTS[::-1]):
        order = 1 if texts is TEXTS else -1
        for tokens in (1, 300, 100_000):
            vectors = encoded(retriever, side, texts, batch_tokens=tokens)[::order]
            np.testing.assert_allclose(vectors, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_pads_take_no_positions_from_a_model_that_counts_them_from_the_first_column(
    backbone_directory, tmp_path, attention
):
    tokenizer = AutoTokenizer.from_pretrained(backbone_directory)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.2
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row = dataclasses.replace(methods.method("llm2vec"), attention=attention, padding_side="left")
    retriever = Retriever.on_backbone(tmp_path, RetrieverCard.of(row, Lineage("random")), precision="fp32")
    alone = np.concatenate([retriever.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(retriever.encode_passages(TEXTS), alone, atol=1e-5)


def test_a_vector_is_the_state_that_a_plain_pass_over_the_text_alone_gives(retriever, backbone_directory):
    model, prompt = model_of(backbone_directory, "bidirectional", "eager"), retriever.prompt("query")
    for text in TEXTS[:3]:
        (row,) = retriever.tokenise_queries([text])
        hidden = states(model, torch.tensor([row]), None)[0]
        words = len(retriever.tokenizer(f" {text}", add_special_tokens=False)["input_ids"])
        chosen = hidden[-1:] if retriever.card.pooling == "last" else hidden[-words:]
        expected = torch.nn.functional.normalize(chosen.mean(dim=0), dim=0).numpy()
        np.testing.assert_allclose(retriever.encode_queries([text])[0], expected, atol=1e-5)
    assert retriever.card.pooling == "last" or prompt.pooled(row, "text") == words


def test_the_first_word_of_a_pooled_text_knows_the_last(backbone_directory):
    row = methods.method("llm2vec", "paper")
    causal = dataclasses.replace(row, attention="causal")
    for method, differs in ((row, True), (causal, False)):
        retriever = Retriever.on_backbone(
            backbone_directory, RetrieverCard.of(method, Lineage("random")), precision="fp32"
        )
        rows = retriever.tokenise_passages(["bread is old", "bread is new"])
        hidden = [states(retriever.model, torch.tensor([ids]), torch.ones(1, len(ids)).long())[0, 1] for ids in rows]
        assert torch.allclose(*hidden, atol=1e-6) != differs
