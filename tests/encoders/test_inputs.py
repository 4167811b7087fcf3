"""What goes into a published encoder, to the token; heads, and weights that are missing or too many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm_retriever import encoders
from llm_retriever.data.collection import Passage
from llm_retriever.encoders.published import token_types
from llm_retriever.errors import InputError
from tests.encoders import models
from tests.encoders.models import PASSAGES, QUERIES

TITLED = Passage("a", "Old bridge", "The river is old.")
BARE = Passage("b", "", "The river is old.")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.gptj(tmp_path_factory.mktemp("gptj") / "model")


def words(encoder: Any, row: list[int]) -> str:
    return " ".join(encoder.towers["passage"].tokenizer.convert_ids_to_tokens(row)).replace(" ##", "")


@pytest.mark.parametrize("name", ["dpr", "cocondenser", "retromae", "simlm"])
def test_a_separator_stands_between_title_and_text(name: str, bert: Path, tmp_path: Path) -> None:
    encoder = encoders.load(f"{name}={models.dpr(tmp_path / 'dpr') if name == 'dpr' else bert}", precision="fp32")
    titled, bare = encoder.tokenise_passages([TITLED, BARE])
    assert words(encoder, titled) == "[CLS] old bridge [SEP] the river is old . [SEP]"
    empty = "[CLS] - [SEP] the" if name == "simlm" else "[CLS] the"
    assert words(encoder, bare) == f"{empty} river is old . [SEP]"
    assert encoder.tokenise_passages(["The river is old."]) == [bare]


def test_only_simlm_marks_the_text_of_a_pair_with_token_type_1(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    for name in ("simlm", "cocondenser"):
        encoder: Any = encoders.load(f"{name}={bert}", precision="fp32")
        model = encoder.towers["passage"].model
        model.register_forward_pre_hook(lambda _, __, given, key=name: seen.update({key: given}), with_kwargs=True)
        encoder.encode_passages([TITLED])
    assert seen["simlm"]["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1]]
    assert "token_type_ids" not in seen["cocondenser"]


def test_token_types_of_a_padded_batch() -> None:
    ids = torch.tensor([[1, 7, 3, 8, 3, 0], [1, 7, 3, 0, 0, 0], [1, 3, 3, 8, 3, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    expected = [[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]]
    assert token_types(ids, mask, separator=3).tolist() == expected


def test_names_of_special_tokens_in_a_text_are_text(bert: Path) -> None:
    encoder = encoders.load(f"cocondenser={bert}")
    (row,) = encoder.tokenise_passages([Passage("a", "old [SEP]", "river [CLS]")])
    assert words(encoder, row) == "[CLS] old [ sep ] [SEP] river [ cls ] [SEP]"


def test_the_prefix_of_bge_is_for_queries_alone(bert: Path) -> None:
    encoder = encoders.load(f"bge-base-en-v1.5={bert}")
    query, passage = encoder.tokenise_queries(["Old river"])[0], encoder.tokenise_passages(["Old river"])[0]
    assert words(encoder, query) == ("[CLS] represent this sentence for searching relevant passages : old river [SEP]")
    assert words(encoder, passage) == "[CLS] old river [SEP]"


def test_sgpt_brackets_are_ids_that_survive_any_length(gptj: Path) -> None:
    encoder: Any = encoders.load(f"sgpt={gptj}")
    tokenizer = encoder.towers["query"].tokenizer
    square, curly = ([tokenizer.convert_tokens_to_ids(token) for token in pair] for pair in ("[]", "{}"))
    text = "The river is old"
    plain = tokenizer.encode(text)
    assert encoder.tokenise_queries([text]) == [[square[0], *plain, square[1]]]
    assert encoder.tokenise_passages([text]) == [[curly[0], *plain, curly[1]]]
    for length in (3, 5, 40):
        (query,) = encoder.tokenise_queries([text * 50], length=length)
        assert len(query) == length
        assert (query[0], query[-1]) == tuple(square)
    assert encoder.tokenise_queries([""]) == [square]
    assert np.isfinite(encoder.encode_queries([""])).all()


@pytest.mark.parametrize("name", ["tas-b", "cocondenser", "simlm", "contriever"])
def test_long_texts_are_cut_to_the_row_or_to_a_given_length(name: str, bert: Path) -> None:
    encoder = encoders.load(f"{name}={bert}")
    long = Passage("a", "Old bridge", "bread " * 900)
    for length in (None, 12):
        for rows, most in (
            (encoder.tokenise_passages([long], length=length), length or encoder.passage_length),
            (encoder.tokenise_queries([long.text], length=length), length or encoder.query_length),
        ):
            assert len(rows[0]) == most
            assert words(encoder, rows[0]).endswith(" [SEP]")


def test_of_a_pair_the_longer_one_is_cut(bert: Path) -> None:
    encoder = encoders.load(f"cocondenser={bert}")
    (row,) = encoder.tokenise_passages([Passage("a", "Old bridge", "bread " * 50)], length=8)
    assert words(encoder, row) == "[CLS] old bridge [SEP] bread bread bread [SEP]"


def test_lengths_that_leave_no_room_or_that_the_model_cannot_read_are_refused(bert: Path, tmp_path: Path) -> None:
    encoder = encoders.load(f"cocondenser={bert}")
    with pytest.raises(InputError, match='field "length": 2 tokens leave no room for a text: 2 are special ones'):
        encoder.encode_queries(["text"], length=2)
    with pytest.raises(InputError, match="3 are special ones; use at least 11"):
        encoder.encode_passages([TITLED], length=3)
    with pytest.raises(InputError, match="at most 512 tokens, not 513"):
        encoder.encode_queries(["text"], length=513)
    # RoBERTa's 514 positions begin behind that of the padding token.
    with pytest.raises(InputError, match="at most 512 tokens, not 513"):
        encoders.load(f"ance={models.ance(tmp_path / 'ance')}").encode_queries(["text"], length=513)


def test_nothing_to_encode_gives_no_vectors(bert: Path) -> None:
    encoder = encoders.load(f"simlm={bert}")
    assert encoder.encode_queries([]).shape == encoder.encode_passages([]).shape == (0, models.HIDDEN)


def test_heads_are_the_checkpoints_and_exact(tmp_path: Path) -> None:
    directory = models.ance(tmp_path / "ance")
    encoder: Any = encoders.load(f"ance={directory}", precision="bf16")
    weights = load_file(directory / "model.safetensors")
    linear, norm = encoder.towers["query"].heads
    assert torch.equal(linear.weight, weights["embeddingHead.weight"])
    assert torch.equal(linear.bias, weights["embeddingHead.bias"])
    assert torch.equal(norm.weight, weights["norm.weight"])
    assert torch.equal(norm.bias, weights["norm.bias"])
    assert encoder.precision == "bf16"
    assert encoder.encode_queries(QUERIES).dtype == np.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_is_close_to_fp32(bert: Path, precision: str) -> None:
    low, exact = (encoders.load(f"simlm={bert}", precision=name) for name in (precision, "fp32"))
    assert (low.encode_passages(PASSAGES) * exact.encode_passages(PASSAGES)).sum(axis=1).min() > 0.99
    assert (low.precision, exact.precision) == (precision, "fp32")
    assert low.identity() == exact.identity()


@pytest.mark.parametrize("missing", ["embeddingHead.weight", "embeddingHead.bias", "norm.weight", "norm.bias"])
def test_a_head_without_its_weights_is_refused(tmp_path: Path, missing: str) -> None:
    directory = models.ance(tmp_path / "ance")
    weights = load_file(directory / "model.safetensors")
    del weights[missing]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"the weights lack {missing}, and vectors without it are worthless"):
        encoders.load(f"ance={directory}")


def test_gtr_without_its_projection_is_refused(tmp_path: Path) -> None:
    directory = models.gtr(tmp_path / "gtr")
    head = directory / "2_Dense" / "model.safetensors"
    save_file({**load_file(head), "linear.bias": torch.zeros(32)}, head)
    with pytest.raises(InputError, match=r"there is linear.bias, which this row does not know"):
        encoders.load(f"gtr-base={directory}")
    head.unlink()
    with pytest.raises(InputError, match=r"2_Dense: there is no model\.safetensors"):
        encoders.load(f"gtr-base={directory}")


def test_an_encoder_whose_weights_are_missing_is_refused(bert: Path, tmp_path: Path) -> None:
    weights = load_file(bert / "model.safetensors")
    removed = next(name for name in sorted(weights) if "attention" in name)
    del weights[removed]
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"the weights lack {removed}"):
        encoders.load(f"tas-b={tmp_path}")


def test_a_pooler_may_be_missing_and_heads_of_pre_training_are_left_aside(bert: Path, tmp_path: Path) -> None:
    weights = {f"bert.{name}": value for name, value in load_file(bert / "model.safetensors").items()}
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    for path in bert.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    more = {"cls.predictions.bias": torch.zeros(5)}
    save_file({**kept, **more}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    vectors = encoders.load(f"cocondenser={tmp_path}", precision="fp32").encode_passages(PASSAGES)
    expected = encoders.load(f"cocondenser={bert}", precision="fp32").encode_passages(PASSAGES)
    np.testing.assert_array_equal(vectors, expected)


def test_weights_that_a_row_has_no_place_for_are_refused(tmp_path: Path) -> None:
    directory = models.ance(tmp_path / "ance")
    with pytest.raises(InputError, match=r"weights that this row has no place for \(embeddingHead.bias\)"):
        encoders.load(f"contriever={directory}")


def test_a_model_of_another_architecture_is_refused(bert: Path) -> None:
    with pytest.raises(InputError, match=r"the weights lack question_encoder\.bert_model\.embeddings"):
        encoders.load(f"dpr={bert},{bert}")


def test_a_model_with_a_decoder_is_not_read_as_one_without(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a model with a decoder, which this row cannot read"):
        encoders.load(f"contriever={tmp_path}")
