"""Where query tokens look: shares against hand computation, a constructed model, and the models' own attention."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llm_retriever.data.collection import Passage
from llm_retriever.models.card import Lineage
from llm_retriever.reranking import attention
from llm_retriever.reranking.attention import (
    BEGINNING,
    BINS,
    COLUMNS,
    EMBEDDING,
    FIRST_BIN,
    PROMPT,
    QUERY,
    analysed,
    attention_means,
    bins,
    embedding_share,
)
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt, load_language_model

PASSAGES = {
    "one": Passage("one", "River", "is old"),
    "two": Passage("two", "", "the glacier moves slowly near the coast " * 40),
}
PAIRS = [("which river is old", "one"), ("glacier", "two"), ("who built the engine", "two")]


def template(*tokens: str) -> QueryPrompt:
    found = QueryPrompt.of(Lineage("random"))
    recipe = replace(found.recipe, passage_length=90, query_length=24)
    return replace(found, recipe=recipe, embedding_tokens=tokens or ("eos",))


@pytest.fixture
def scorer(backbone_directory: Path) -> QueryLikelihood:
    model, tokenizer = load_language_model(backbone_directory, precision="fp32", device="cpu", attention="eager")
    return QueryLikelihood(model, tokenizer, template(), PASSAGES)


def looking_everywhere_alike(model) -> None:
    """Queries of zero make every score zero: each position looks at all positions up to itself alike."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()


def layout(tokenizer, query: str, passage: str, embedding: int = 1) -> tuple[int, int, int, int]:
    """Tokens of the prompt before and behind the passage, of the passage, and of the query, found by hand."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    document, found = template().recipe.document, PASSAGES[passage]
    before, behind = len(ids(document.prefix.rstrip())), len(ids(document.suffix))
    text = f"{found.title} {found.text}".strip()
    while len(whole := ids(document.prefix + text + document.suffix)) > 90 - 1:
        text = text[:-1].rstrip()
    body = len(whole) - before - behind
    return before, behind, body, min(len(ids(query)), 23)


@pytest.mark.parametrize("tokens", [("eos",), ("eos", "eos", "eos")], ids=["one", "three"])
def test_a_model_that_looks_everywhere_alike_gives_the_shares_of_the_lengths(scorer, backbone_directory, tokens):
    looking_everywhere_alike(scorer.model)
    alike = QueryLikelihood(scorer.model, scorer.tokenizer, template(*tokens), PASSAGES)
    tokenizer, width = AutoTokenizer.from_pretrained(backbone_directory), len(tokens)
    expected, rows = torch.zeros(len(COLUMNS), dtype=torch.float64), 0
    for query, passage in PAIRS:
        before, behind, body, asked = layout(tokenizer, query, passage)
        document = 1 + before + body + behind
        for generated in range(asked):
            seen = document + width + generated
            expected[BEGINNING] += 1 / seen
            expected[PROMPT] += (before + behind) / seen
            expected[FIRST_BIN : FIRST_BIN + BINS] += body / BINS / seen
            expected[EMBEDDING] += width / seen
            expected[QUERY] += generated / seen
            rows += 1
    means = attention_means(alike, PAIRS)
    assert means.shape == (3, len(COLUMNS))
    for layer in means:
        assert layer.tolist() == pytest.approx((expected / rows).tolist(), abs=1e-6)


def test_without_a_beginning_of_sequence_the_first_token_is_set_apart(backbone_directory):
    model, tokenizer = load_language_model(backbone_directory, precision="fp32", device="cpu", attention="eager")
    scorer = QueryLikelihood(model, tokenizer, template(), PASSAGES)
    with_it = attention_means(scorer, PAIRS[:1])
    scorer.rows.documents.opening = []
    queries, documents = scorer.tokenised(PAIRS[:1])
    _, columns = attention._places(scorer, documents["one"], queries[PAIRS[0][0]])
    assert columns.sum(dim=1).tolist() == pytest.approx([1.0] * len(columns))
    assert columns[:, BEGINNING].tolist() == [1.0] + [0.0] * (len(columns) - 1)
    assert attention_means(scorer, PAIRS[:1]).shape == with_it.shape


def test_shares_of_every_layer_sum_to_one_and_differ_between_layers(scorer):
    means = attention_means(scorer, PAIRS)
    assert means.sum(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert (means >= 0).all()
    assert (means[0] - means[1]).abs().max() > 1e-4


def test_one_pair_is_what_the_model_itself_gives_without_padding(scorer):
    """The mean over heads and rows of the attention that the model returns for the bare row, with no mask from us."""
    query, passage = PAIRS[0]
    before, behind, body, asked = layout(scorer.tokenizer, query, passage)
    queries, documents = scorer.tokenised([PAIRS[0]])
    row = [*documents[passage], scorer.tokenizer.eos_token_id, *queries[query]]
    with torch.no_grad():
        weights = scorer.model(input_ids=torch.tensor([row]), output_attentions=True).attentions
    found = attention_means(scorer, PAIRS)[0], attention_means(scorer, PAIRS[:1])
    e = 1 + before + body + behind
    for layer, given in zip(found[1], weights, strict=True):
        rows = given[0].mean(dim=0)[e : e + asked].mean(dim=0)
        assert layer[EMBEDDING].item() == pytest.approx(rows[e].item(), abs=1e-6)
        assert layer[BEGINNING].item() == pytest.approx(rows[0].item(), abs=1e-6)
        in_bins = layer[FIRST_BIN : FIRST_BIN + BINS].sum().item()
        assert in_bins == pytest.approx(rows[1 + before : 1 + before + body].sum().item(), abs=1e-6)
        assert layer[QUERY].item() == pytest.approx(rows[e + 1 :].sum().item(), abs=1e-6)
    assert found[0].tolist() != pytest.approx(found[1][0].tolist(), abs=1e-5)


def test_what_is_held_at_a_time_does_not_change_the_means(scorer, monkeypatch):
    together = attention_means(scorer, PAIRS)
    monkeypatch.setattr(attention, "VALUES_AT_ONCE", 1)
    assert attention_means(scorer, PAIRS).flatten().tolist() == pytest.approx(together.flatten().tolist(), abs=1e-6)


@pytest.mark.parametrize("length", [1, 3, 20, 37, 60])
def test_every_token_is_spread_over_the_bins_and_every_bin_gets_as_much(length: int):
    spread = bins(length)
    assert spread.shape == (length, BINS)
    assert spread.sum(dim=1).tolist() == pytest.approx([1.0] * length)
    assert spread.sum(dim=0).tolist() == pytest.approx([length / BINS] * BINS)


def test_bins_by_hand():
    assert bins(40)[2:4, 1].tolist() == [1.0, 1.0]
    assert bins(40)[4, 2].item() == 1.0
    assert bins(10)[3, 6:8].tolist() == [0.5, 0.5]
    assert bins(0).shape == (0, BINS)


def test_the_share_of_the_embedding_token_leaves_out_the_beginning_and_the_query():
    means = torch.zeros(2, len(COLUMNS), dtype=torch.float64)
    means[0, [BEGINNING, PROMPT, FIRST_BIN, EMBEDDING, QUERY]] = torch.tensor([0.5, 0.1, 0.1, 0.2, 0.1]).double()
    means[1, [BEGINNING, FIRST_BIN + 3, EMBEDDING]] = torch.tensor([0.2, 0.6, 0.2]).double()
    assert embedding_share(means) == pytest.approx((0.5 + 0.25) / 2)


def test_models_are_analysed_on_the_same_pairs_and_written_as_numbers(backbone_directory):
    directories = {"backbone": backbone_directory, "adapted backbone": backbone_directory}
    found = analysed(directories, template(), PASSAGES, PAIRS, precision="fp32", device="cpu")
    assert (found["pairs"], found["columns"]) == (3, list(COLUMNS))
    one, other = found["models"].values()
    assert one == other
    assert [sum(layer) for layer in one["layers"]] == pytest.approx([1.0] * 3, abs=1e-5)
    assert 0 < one["embedding_share"] < 1


def test_pairs_without_any_query_are_refused(scorer):
    with pytest.raises(ValueError, match="no pair has a query"):
        attention_means(scorer, [("", "one")])
