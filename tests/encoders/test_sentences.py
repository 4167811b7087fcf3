"""Sentence-transformers directories: its own vectors where the modules are understood, a refusal where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

from llm_retriever import encoders
from llm_retriever.errors import InputError
from tests.encoders import models
from tests.encoders.models import HIDDEN, PASSAGES, QUERIES, TEXTS

PROMPTS = {"query": "which river: ", "document": "the old bridge: "}


def directory_of(
    place: Path, model: Path, *more: Any, mode: str = "mean", include_prompt: bool = True, **options: Any
) -> Path:
    """A sentence-transformers directory on a small model, as that library writes it."""
    options.setdefault("similarity_fn_name", "dot")
    pooling = Pooling(HIDDEN, pooling_mode=mode, include_prompt=include_prompt)
    modules = [Transformer(str(model), max_seq_length=options.pop("length", 64)), pooling, *more]
    SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(str(place))
    return place


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture
def plain(bert: Path, tmp_path: Path) -> Path:
    return directory_of(tmp_path / "plain", bert)


def assert_same_vectors(directory: Path) -> encoders.Encoder:
    theirs = SentenceTransformer(str(directory), device="cpu", model_kwargs={"dtype": "float32"})
    ours = encoders.load(str(directory), precision="fp32")
    passages = [f"{p.title} {p.text}" if p.title else p.text for p in PASSAGES]
    np.testing.assert_allclose(ours.encode_queries(QUERIES), theirs.encode_query(QUERIES), atol=1e-5)
    np.testing.assert_allclose(ours.encode_passages(PASSAGES), theirs.encode_document(passages), atol=1e-5)
    assert ours.dimension == theirs.get_embedding_dimension()
    return ours


@pytest.mark.parametrize("mode", ["cls", "mean", "weightedmean", "lasttoken"])
def test_poolings_and_prompts_are_understood(bert: Path, tmp_path: Path, mode: str) -> None:
    encoder = assert_same_vectors(directory_of(tmp_path / "bi-encoder", bert, mode=mode, prompts=PROMPTS))
    assert encoder.name == "bi-encoder"
    assert np.abs(encoder.encode_queries(TEXTS) - encoder.encode_passages(TEXTS)).max() > 0.01


def test_a_prompt_may_be_left_out_of_the_mean(bert: Path, tmp_path: Path) -> None:
    assert_same_vectors(directory_of(tmp_path / "masked", bert, include_prompt=False, prompts=PROMPTS))


def test_a_default_prompt_is_for_the_side_without_one(bert: Path, tmp_path: Path) -> None:
    prompts = {"query": "which river: ", "other": "planet: "}
    assert_same_vectors(directory_of(tmp_path / "default", bert, prompts=prompts, default_prompt_name="other"))


def test_projections_and_normalisation_are_understood(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = Dense(HIDDEN, 24), Dense(24, 16, bias=False, activation_function=torch.nn.Identity())
    encoder = assert_same_vectors(directory_of(tmp_path / "dense", bert, *dense, Normalize()))
    assert encoder.dimension == 16
    np.testing.assert_allclose(np.linalg.norm(encoder.encode_queries(QUERIES), axis=1), 1, atol=1e-6)


def test_a_t5_and_a_causal_model_are_understood(tmp_path: Path) -> None:
    assert_same_vectors(directory_of(tmp_path / "t5", models.gtr(tmp_path / "gtr"), Normalize()))
    assert_same_vectors(directory_of(tmp_path / "gpt", models.gpt_neo(tmp_path / "neo"), mode="lasttoken"))


def test_lengths_are_the_directorys(bert: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "short", bert, length=9)
    models.change_json(directory / "sentence_bert_config.json", query_length=7)
    encoder = assert_same_vectors(directory)
    assert (encoder.query_length, encoder.passage_length) == (7, 9)
    (directory / "sentence_bert_config.json").unlink()
    models.change_json(directory / "tokenizer_config.json", model_max_length=11)
    assert encoders.load(str(directory)).query_length == 11


def test_cosine_similarity_means_vectors_of_length_one(bert: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "cosine", bert, similarity_fn_name="cosine")
    vectors = encoders.load(str(directory)).encode_queries(QUERIES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def change_module(directory: Path, position: int, **changes: Any) -> None:
    rows = json.loads((directory / "modules.json").read_text())
    rows[position].update(changes)
    (directory / "modules.json").write_text(json.dumps(rows))


def test_a_module_that_is_not_known_is_refused(plain: Path) -> None:
    change_module(plain, 1, type="sentence_transformers.models.LSTM")
    with pytest.raises(InputError, match=r"modules\.json: modules Transformer, LSTM are not known here"):
        encoders.load(str(plain))


def test_a_module_outside_of_the_directory_is_refused(plain: Path) -> None:
    change_module(plain, 1, path="../1_Pooling")
    with pytest.raises(InputError, match=r"'\.\./1_Pooling' is outside of the directory"):
        encoders.load(str(plain))


@pytest.mark.parametrize(
    ("file", "changes", "problem"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode": "max"},
            "'max' is not known here; cls, mean, weighted mean, last are",
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "'cls\\+mean' is not known here"),
        ("config_sentence_transformers.json", {"similarity_fn_name": "euclidean"}, "'euclidean' is not known here"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, '"query_expansion": .* is not known here'),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "'fill-mask' is not known here"),
    ],
)
def test_a_setting_that_is_not_known_is_refused(plain: Path, file: str, changes: dict[str, Any], problem: str) -> None:
    models.change_json(plain / file, **changes)
    with pytest.raises(InputError, match=problem):
        encoders.load(str(plain))


def test_a_projection_that_is_not_known_is_refused(bert: Path, tmp_path: Path) -> None:
    directory = directory_of(tmp_path / "dense", bert, Dense(HIDDEN, 24, activation_function=torch.nn.ReLU()))
    with pytest.raises(InputError, match="a Dense module of a kind that is not known here; Identity and Tanh are"):
        encoders.load(str(directory))
