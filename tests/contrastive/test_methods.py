"""Every method of the table: a text has one vector, in training and in use, alone and in company, however it is padded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

from llm_retriever.contrastive.dataset import Group, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.contrastive.tuning import resolved_method, tune
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.methods import METHODS, NEW_TOKENS, Method, PromptTemplate, method, with_embedding, with_read_out
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.card import (
    EMBEDDING_TOKENS,
    Lineage,
    RetrieverCard,
    Stage,
    load_lineage,
    save_lineage,
    weights_digest,
)
from llm_retriever.models.pooling import pool
from llm_retriever.models.prompts import PromptEncoder, plain_ids, symbol_ids
from llm_retriever.settings import TuningSettings
from llm_retriever.training.vocabulary import extended

ROOM = 40
"""Tokens for the text, in every copy of it."""
TEXTS = [
    "which river is old",
    "The engine, built by hand in the north, needs water: planet bread violin 7." * 4,
    "a",
    "harbour lantern glacier poem",
    "Under the moon the bridge moves slowly? " * 2,
]


def rows() -> dict[str, Method]:
    """Every row of the table that words or reads out in its own way, and the variants that settings can ask for."""
    found = {f"{name}-{recipe}": row for name, recipes in METHODS.items() for recipe, row in recipes.items()}
    found |= {f"llm-ql-{tokens}": with_embedding(method("llm-ql"), tokens) for tokens in ("eos", "eos4", "new4")}
    found |= {f"llama2vec-{way}": with_read_out(method("llama2vec"), way) for way in ("s2s", "n2n")}
    looks = {key: (row.query, row.passage, row.pooling, row.attention, row.padding_side) for key, row in found.items()}
    return {key: found[key] for key in {look: key for key, look in reversed(looks.items())}.values()}


ROWS = rows()
each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
each_template = pytest.mark.parametrize(
    "template", list(dict.fromkeys(w for row in ROWS.values() for w in (row.query, row.passage)))
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are fastest with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def backbone(backbone_directory: Path) -> Iterator[Path]:
    """The backbone as a stage-one adaptation leaves it: with new tokens, each with an embedding of its own."""
    from transformers import AutoModelForCausalLM

    with extended(backbone_directory, NEW_TOKENS) as directory:
        model = AutoModelForCausalLM.from_pretrained(directory)
        torch.manual_seed(5)
        model.get_input_embeddings().weight.data[-len(NEW_TOKENS) :].normal_(std=0.02)
        model.save_pretrained(directory)
        save_lineage(directory, Lineage(source="random", digest=weights_digest(directory)))
        yield directory


@pytest.fixture(scope="module")
def tokenizer(backbone: Path) -> Any:
    return AutoTokenizer.from_pretrained(backbone)


@pytest.fixture(scope="module")
def model(backbone: Path) -> Any:
    return AutoModel.from_pretrained(backbone).eval()


def prompt_tokens(tokenizer: Any, template: PromptTemplate) -> int:
    """Tokens of the prompt alone."""
    pieces = plain_ids(tokenizer, [*template.prefix_pieces, template.suffix, template.between or ""])
    return 1 + sum(map(len, pieces)) + len(template.embedding_tokens)


def copies(template: PromptTemplate) -> int:
    return 1 if template.between is None else 2


def sized(tokenizer: Any, row: Method, room: int = ROOM) -> Method:
    """The row with lengths that leave `room` tokens for every copy of a text."""
    query, passage = (prompt_tokens(tokenizer, w) + copies(w) * room for w in (row.query, row.passage))
    return replace(row, query_length=query, passage_length=passage)


def retriever_of(row: Method, model: Any, tokenizer: Any) -> Retriever:
    sized_row = sized(tokenizer, row)
    return Retriever(model, tokenizer, RetrieverCard.of(sized_row, Lineage(source="random")))


@each_row
def test_training_and_encoding_give_the_same_vectors(row, model, tokenizer, collection_directory):
    retriever, row = retriever_of(row, model, tokenizer), sized(tokenizer, row)
    lookup = Collection.open(collection_directory).lookup()
    groups = [Group(text, (f"p{i}", f"p{3 * i + 7}")) for i, text in enumerate(TEXTS)]
    batch, loss = GroupCollator(row, tokenizer, lookup)(groups), ContrastiveLoss(row)
    with torch.no_grad():
        queries = loss.encode(model, batch["query_ids"], batch["query_mask"], batch.get("query_pooled"))
        passages = loss.encode(model, batch["passage_ids"], batch["passage_mask"], batch.get("passage_pooled"))
    np.testing.assert_allclose(retriever.encode_queries(TEXTS), queries.numpy(), atol=1e-5)
    used = retriever.encode_passages([lookup[i] for group in groups for i in group.passages])
    np.testing.assert_allclose(used, passages.numpy(), atol=1e-5)
    assert np.abs(used[0] - used[1]).max() > 1e-3


@each_row
def test_a_vector_depends_neither_on_its_batch_nor_on_the_padding(row, model, tokenizer):
    retriever = retriever_of(row, model, tokenizer)
    alone = np.concatenate([retriever.encode_queries([text]) for text in TEXTS])
    np.testing.assert_allclose(retriever.encode_queries(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(retriever.encode_queries(TEXTS[::-1], batch_tokens=300)[::-1], alone, atol=1e-5)
    encoder = retriever.prompt("query")
    ids = encoder.batch(TEXTS)
    counts = None if row.pooling == "last" else torch.tensor([encoder.pooled(i, row.pooling) for i in ids])
    for side in ("left", "right"):
        batch = padded(ids, pad_id(tokenizer), side, multiple_of=16)
        with torch.no_grad():
            hidden = model(**batch, use_cache=False).last_hidden_state
        vectors = pool(hidden, batch["attention_mask"], row.pooling, counts, normalise=row.normalise)
        np.testing.assert_allclose(vectors.numpy(), alone, atol=1e-5)


@each_row
def test_a_vector_is_the_mean_of_the_states_that_the_method_names(row, model, tokenizer):
    retriever, template, text = retriever_of(row, model, tokenizer), row.query, TEXTS[3]
    seam = " " if template.tokenise == "whole" else ""  # the last one of the prompt is the first word's
    ids, body = retriever.tokenise_queries([text])[0], plain_ids(tokenizer, [seam + text])[0]
    closing = symbol_ids(tokenizer, template.embedding_tokens)
    following = [*plain_ids(tokenizer, [template.suffix])[0], *closing]
    expected = {"last": ids[-1:], "embedding": closing, "text": [*body, *following]}[row.pooling]
    pooled = retriever.prompt("query").pooled(ids, row.pooling)
    assert ids[-pooled:] == expected
    assert row.pooling != "embedding" or pooled == len(template.embedding_tokens) > 1
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    by_hand = functional.normalize(states[-len(expected) :].mean(dim=0), dim=0)
    np.testing.assert_allclose(retriever.encode_queries([text])[0], by_hand.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_only_llm2vec_lets_the_first_token_see_the_last_one(name, model, tokenizer):
    retriever = retriever_of(method(name), model, tokenizer)
    ids = retriever.tokenise_queries(TEXTS[:1])[0]
    with torch.no_grad():
        first, other = (
            retriever.model(input_ids=torch.tensor([[*ids[:-1], last]]), use_cache=False).last_hidden_state[0, 0]
            for last in (ids[-1], 9)
        )
    assert bool((first - other).abs().max() > 1e-4) == (name == "llm2vec")


@each_template
def test_prompt_and_embedding_tokens_survive_any_length(template, tokenizer):
    closing, prompt = symbol_ids(tokenizer, template.embedding_tokens), prompt_tokens(tokenizer, template)
    for length in (*range(prompt + copies(template), prompt + 12), prompt + 60):
        encoder = PromptEncoder(tokenizer, template, length)
        for ids in encoder.batch([*TEXTS, "", "planet " * 400]):
            assert len(ids) <= length
            assert ids[0] == tokenizer.bos_token_id
            inside = ids[1 : len(ids) - len(closing)]
            assert [*inside, *closing] == ids[1:]
            worded = tokenizer.decode(inside)
            assert worded.startswith("".join(template.prefix_pieces).rstrip())
            assert worded.endswith(template.suffix)
            assert (template.between or "") in worded


@pytest.mark.parametrize("recipe", ["default", "paper", "released"])
def test_both_copies_of_echo_are_cut_alike(recipe, tokenizer):
    template, body = method("echo", recipe).passage, plain_ids(tokenizer, [TEXTS[1]])[0]
    prefix, between = plain_ids(tokenizer, [template.prefix, template.between])
    closing = symbol_ids(tokenizer, template.embedding_tokens)
    for room in range(2, 31):
        ids = PromptEncoder(tokenizer, template, prompt_tokens(tokenizer, template) + room).ids(TEXTS[1])
        copy = body[: room // 2]
        assert ids[1:] == [*prefix, *copy, *between, *copy, *closing]


@each_template
def test_a_length_without_room_for_every_copy_is_refused(template, tokenizer):
    short = prompt_tokens(tokenizer, template) + copies(template) - 1
    with pytest.raises(InputError) as caught:
        PromptEncoder(tokenizer, template, short, setting="passage_length")
    what = "a text" if template.between is None else "two copies of a text"
    assert f'field "passage_length": {short} tokens leave no room for {what}' in str(caught.value)


def test_a_backbone_without_the_tokens_is_refused_by_the_collator(backbone_directory, collection_directory):
    plain = AutoTokenizer.from_pretrained(backbone_directory)
    row = replace(method("llama2vec"), query_length=200, passage_length=200)
    with pytest.raises(InputError, match="the tokenizer has no token '<s9>'"):
        GroupCollator(row, plain, Collection.open(collection_directory).lookup())


SMALL = {"passages_per_query": 2, "temperature": 0.05, "max_steps": 2, "batch_size": 4, "micro_batch_size": 4}
SMALL |= {"learning_rate": 1e-3, "precision": "fp32", "processes": 1, "gradient_cache": 3}


@pytest.mark.parametrize(("name", "embedding", "missing"), [("llama2vec", "", 16), ("llm-ql", "new4", 4)])
def test_tuning_refuses_a_backbone_without_the_tokens(
    name, embedding, missing, backbone_directory, collection_directory, training_set_directory, tmp_path
):
    settings = TuningSettings(method=name, embedding=embedding, **SMALL)
    with pytest.raises(InputError) as caught:
        tune(settings, backbone_directory, collection_directory, training_set_directory, tmp_path / "retriever")
    said = str(caught.value)
    assert f'field "method": {name} is read out at <s1> and {missing - 1} more' in said
    assert "adapt it first (ebae_ebar for llama2vec" in said
    assert "\n" not in said
    assert not (tmp_path / "retriever").exists()


def test_tuning_refuses_other_embedding_tokens_than_stage_one_trained(
    backbone_directory, collection_directory, training_set_directory, tmp_path
):
    adapted = tmp_path / "adapted"
    shutil.copytree(backbone_directory, adapted)
    save_lineage(adapted, load_lineage(adapted).then(Stage("ql", {EMBEDDING_TOKENS: [["eos"] * 4] * 2})))
    with pytest.raises(InputError, match="stage one trained the embedding tokens eos eos eos eos, not eos"):
        tune(TuningSettings(**SMALL), adapted, collection_directory, training_set_directory, tmp_path / "retriever")


def test_lengths_that_are_given_are_those_of_one_copy():
    echo, repllama = (
        resolved_method(TuningSettings(method=name, passage_length=90, query_length=40))
        for name in ("echo", "repllama")
    )
    assert (echo.query_length, echo.passage_length) == (80, 180)
    assert (repllama.query_length, repllama.passage_length) == (40, 90)
    assert resolved_method(TuningSettings(method="echo")) == method("echo")


def test_a_read_out_for_a_method_with_prompts_of_its_own_is_refused():
    with pytest.raises(InputError, match='field "read_out"'):
        resolved_method(TuningSettings(method="repllama", read_out="s2s"))


@pytest.mark.parametrize("name", ["repllama", "echo", "summarize", "llm2vec", "llama2vec"])
def test_a_method_is_tuned_and_used(name, backbone, tokenizer, collection_directory, training_set_directory, tmp_path):
    row, directory = sized(tokenizer, method(name)), tmp_path / "retriever"
    lengths = {"query_length": row.query_length, "passage_length": row.passage_length}
    settings = TuningSettings(method=name, **SMALL, **lengths)
    log = tune(settings, backbone, collection_directory, training_set_directory, directory)
    assert len(log.steps) == 2
    retriever = Retriever.load(directory, precision="fp32")
    card = retriever.card
    assert (card.method, card.query, card.passage) == (name, row.query, row.passage)
    assert (card.pooling, card.attention) == (row.pooling, row.attention)
    assert card.lineage.stages[-1].settings["gradient_cache"] == 3
    assert retriever.model.config.is_causal == (name != "llm2vec")
    vectors, before = retriever.encode_queries(TEXTS), Retriever.on_backbone(backbone, card, precision="fp32")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors - before.encode_queries(TEXTS)).max() > 1e-4
