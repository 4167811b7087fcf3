"""A retriever: what decides a vector (the card and the text) and what must not (batch, neighbours, padding)."""

from __future__ import annotations

import dataclasses
import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from llm_retriever import methods
from llm_retriever.data.collection import Passage
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.models.batches import padded
from llm_retriever.models.card import CARD_FILE, Lineage, RetrieverCard, weights_digest
from llm_retriever.models.pooling import pool
from tests.conftest import passages, write_backbone

TEXTS = [row["text"] for row in passages(24)] + ["a bridge", "bread " * 40]


def write_retriever(directory: Path, seed: int = 0, **changes) -> Path:
    """A retriever as tune_retriever writes it, with random weights."""
    write_backbone(directory / "model", seed=seed)
    # The small tokenizer needs 100 tokens for the query's prompt alone.
    method = dataclasses.replace(methods.method("llm-ql"), query_length=160)
    card = RetrieverCard.of(method, Lineage("random"), weights=weights_digest(directory / "model"))
    dataclasses.replace(card, **changes).save(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_retriever(tmp_path_factory.mktemp("retriever") / "retriever")


@pytest.fixture(scope="module")
def loaded(directory) -> Retriever:
    return Retriever.load(directory, precision="fp32")


@pytest.fixture
def spoilt(directory, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(directory, tmp_path / "spoilt"))


def test_vectors_are_float32_of_length_one_in_the_order_of_the_texts(loaded):
    vectors = loaded.encode_queries(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), loaded.dimension) == (len(TEXTS), 64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for i in (0, len(TEXTS) - 1):
        np.testing.assert_allclose(vectors[i], loaded.encode_queries([TEXTS[i]])[0], atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_a_vector_does_not_depend_on_its_batch(loaded, batch_tokens):
    alone = np.concatenate([loaded.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(loaded.encode_passages(TEXTS, batch_tokens=batch_tokens), alone, atol=1e-5)


def test_a_vector_does_not_depend_on_its_neighbours(loaded):
    forwards, backwards = loaded.encode_passages(TEXTS), loaded.encode_passages(TEXTS[::-1])
    np.testing.assert_allclose(forwards, backwards[::-1], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_right_padding_without_a_mask_equals_the_masked_pass(loaded, directory, side, attention):
    rows = loaded.tokenise_passages(TEXTS)
    assert len({len(row) for row in rows}) > 5
    model = AutoModel.from_pretrained(directory / "model", attn_implementation=attention, dtype=torch.float32)
    batch = padded(rows, pad=0, side=side)
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    masked = pool(hidden, batch["attention_mask"], normalise=True).numpy()
    np.testing.assert_allclose(loaded.embed("passage", rows), masked, atol=1e-5)


def test_bidirectional_cards_see_the_whole_text_and_need_the_mask(directory, loaded):
    card = dataclasses.replace(loaded.card, attention="bidirectional")
    both_ways = Retriever.on_backbone(directory / "model", card, precision="fp32")
    alone = np.concatenate([both_ways.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(both_ways.encode_passages(TEXTS), alone, atol=1e-5)
    assert np.abs(alone - loaded.encode_passages(TEXTS)).max() > 1e-2


def test_bf16_is_close_to_fp32(directory, loaded):
    low = Retriever.load(directory, precision="bf16").encode_passages(TEXTS)
    assert low.dtype == np.float32
    assert (low * loaded.encode_passages(TEXTS)).sum(axis=1).min() > 0.999


def test_queries_and_passages_are_worded_by_the_card(loaded):
    text = "who built the bridge"
    query, passage = loaded.tokenise_queries([text])[0], loaded.tokenise_passages([text])[0]
    end = loaded.tokenizer.eos_token
    assert loaded.tokenizer.decode(query).endswith(f"{text}\nThe most relevant passage:{end}")
    assert loaded.tokenizer.decode(passage).endswith(f"Passage:  {text}\nSummarization:{end}")


def test_a_title_stands_before_the_text_and_an_empty_one_leaves_it_alone(loaded):
    titled, bare = Passage("a", "Old bridge", "Built in 1302."), Passage("b", "", "Built in 1302.")
    rows = loaded.tokenise_passages([titled, bare, "Old bridge Built in 1302.", "Built in 1302."])
    assert rows[0] == rows[2]
    assert rows[1] == rows[3]
    assert np.array_equal(loaded.encode_passages([bare]), loaded.encode_passages(["Built in 1302."]))


def test_long_texts_are_cut_to_the_card_or_to_a_given_length(loaded):
    long = "bread " * 2000
    assert len(loaded.tokenise_passages([long])[0]) == loaded.card.passage_length
    assert len(loaded.tokenise_queries([long])[0]) == loaded.card.query_length
    assert len(loaded.tokenise_passages([long], length=120)[0]) == 120
    assert loaded.tokenise_passages([long], length=120)[0][-1] == loaded.tokenizer.eos_token_id


def test_a_length_that_the_model_cannot_read_is_refused(loaded):
    with pytest.raises(InputError, match="at most 512 tokens, not 513"):
        loaded.encode_passages(["text"], length=513)


def test_nothing_to_encode_gives_no_vectors(loaded):
    assert loaded.encode_queries([]).shape == (0, 64)


def test_a_model_without_a_card_is_not_encoded_with(spoilt):
    (spoilt / CARD_FILE).unlink()
    with pytest.raises(InputError, match="a model without a card is not encoded with"):
        Retriever.load(spoilt)


def test_weights_of_another_model_are_refused(spoilt, tmp_path):
    other = write_backbone(tmp_path / "other", seed=1)
    shutil.copy(other / "model.safetensors", spoilt / "model")
    with pytest.raises(InputError, match="not those that the card belongs to"):
        Retriever.load(spoilt)


def test_a_card_that_names_no_weights_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not say which weights"):
        Retriever.load(write_retriever(tmp_path / "r", weights=""))


def test_missing_weights_are_not_left_to_chance(tmp_path):
    backbone = write_backbone(tmp_path / "backbone")
    weights = load_file(backbone / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, backbone / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack layers\.1\.mlp\.up_proj\.weight"):
        Retriever.on_backbone(backbone, RetrieverCard.of(methods.method("llm-ql"), Lineage("random")))


def test_pickled_weights_are_refused(tmp_path):
    backbone = write_backbone(tmp_path / "backbone")
    torch.save(load_file(backbone / "model.safetensors"), backbone / "pytorch_model.bin")
    (backbone / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded"):
        Retriever.on_backbone(backbone, RetrieverCard.of(methods.method("llm-ql"), Lineage("random")))


def test_a_vector_that_is_not_finite_names_its_text(loaded, directory):
    broken = Retriever.load(directory, precision="fp32")
    with torch.no_grad():
        broken.model.embed_tokens.weight[loaded.tokenizer("@", add_special_tokens=False)["input_ids"][0]] = np.nan
    fine, bad = Passage("p1", "", "bread"), Passage("päß-7", "", "@")
    with pytest.raises(InputError, match="passage 'päß-7' is not finite"):
        broken.encode_passages([fine, bad])
    with pytest.raises(InputError, match="query '@' is not finite"):
        broken.encode_queries(["@"])


def test_an_untuned_backbone_gets_a_card_of_its_own(loaded, backbone_directory, directory, tmp_path):
    same = Retriever.on_backbone(directory / "model", loaded.card)
    other = Retriever.on_backbone(write_backbone(tmp_path / "other", seed=1), loaded.card)
    assert same.card.digest() == loaded.card.digest()
    assert other.card.digest() != loaded.card.digest()


def test_the_documented_example_runs(directory):
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(Retriever, "Retriever", globs={"Retriever": Retriever, "path": directory})
    result = doctest.DocTestRunner().run(example)
    assert (result.attempted, result.failed) == (4, 0)
