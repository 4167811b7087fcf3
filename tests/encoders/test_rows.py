"""Each row's wiring on a small model of its architecture: vectors are those of plain transformers calls, pooled by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from llm_retriever import encoders
from llm_retriever.data.collection import Passage
from tests.encoders import models
from tests.encoders.models import HIDDEN, PASSAGES, QUERIES

Vector = Any
BGE = "Represent this sentence for searching relevant passages: "


def title_text(passage: Passage) -> str:
    return f"{passage.title} {passage.text}" if passage.title else passage.text


def pair_or_text(passage: Passage) -> tuple[str, ...]:
    return (passage.title, passage.text) if passage.title else (passage.text,)


def hidden_states(directory: Path, inputs: dict[str, Any], kind: str = "AutoModel") -> torch.Tensor:
    """Hidden states of one text, alone and without padding: float [tokens, dimension]."""
    model = getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(**inputs).last_hidden_state[0]


def tokens(directory: Path, *texts: str, **options: Any) -> dict[str, Any]:
    return dict(transformers.AutoTokenizer.from_pretrained(directory)(*texts, return_tensors="pt", **options))


def unit(vector: Vector) -> Vector:
    return vector / vector.norm()


def cls_of(directory: Path, *texts: str, types: bool = False) -> Vector:
    return hidden_states(directory, tokens(directory, *texts, return_token_type_ids=types))[0]


def dpr(directory: Path, side: str, item: Any) -> Vector:
    """The published class gives the vector itself."""
    kind = "DPRQuestionEncoder" if side == "query" else "DPRContextEncoder"
    texts = (item,) if side == "query" else pair_or_text(item)
    model = getattr(transformers, kind).from_pretrained(directory / side).eval()
    with torch.no_grad():
        return model(tokens(directory / side, *texts)["input_ids"]).pooler_output[0]


def ance(directory: Path, side: str, item: Any) -> Vector:
    text = item if side == "query" else title_text(item)
    weights = load_file(directory / "model.safetensors")
    projected = weights["embeddingHead.weight"] @ cls_of(directory, text) + weights["embeddingHead.bias"]
    return torch.nn.functional.layer_norm(projected, (HIDDEN,), weights["norm.weight"], weights["norm.bias"])


def plain_cls(directory: Path, side: str, item: Any) -> Vector:
    return cls_of(directory, item if side == "query" else title_text(item))


def separated_cls(directory: Path, side: str, item: Any) -> Vector:
    return cls_of(directory, *((item,) if side == "query" else pair_or_text(item)))


def simlm(directory: Path, side: str, item: Any) -> Vector:
    texts = (item,) if side == "query" else (item.title or "-", item.text)
    return unit(cls_of(directory, *texts, types=True))


def dragon(directory: Path, side: str, item: Any) -> Vector:
    return plain_cls(directory / side, side, item)


def bge(directory: Path, side: str, item: Any) -> Vector:
    return unit(cls_of(directory, BGE + item if side == "query" else title_text(item)))


def mean(directory: Path, side: str, item: Any) -> Vector:
    return hidden_states(directory, tokens(directory, item if side == "query" else title_text(item))).mean(dim=0)


def gtr(directory: Path, side: str, item: Any) -> Vector:
    inputs = tokens(directory, item if side == "query" else title_text(item), return_token_type_ids=False)
    weight = load_file(directory / "2_Dense" / "model.safetensors")["linear.weight"]
    return unit(weight @ hidden_states(directory, inputs, "T5EncoderModel").mean(dim=0))


def sgpt(directory: Path, side: str, item: Any) -> Vector:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    first, last = (tokenizer.encode(bracket)[0] for bracket in ("[]" if side == "query" else "{}"))
    ids = [first, *tokenizer.encode(item if side == "query" else title_text(item)), last]
    hidden = hidden_states(directory, {"input_ids": torch.tensor([ids])})
    weights = torch.arange(1, len(ids) + 1, dtype=torch.float32)
    return unit((weights[:, None] * hidden).sum(dim=0) / weights.sum())


Make = Callable[[Path], Path]
Expected = Callable[[Path, str, Any], Vector]
ROWS: dict[str, tuple[Make, Expected]] = {
    "dpr": (models.dpr, dpr),
    "ance": (models.ance, ance),
    "tas-b": (models.distilbert, plain_cls),
    "cocondenser": (models.bert, separated_cls),
    "simlm": (models.bert, simlm),
    "retromae": (models.bert, separated_cls),
    "retromae-distill": (models.bert, separated_cls),
    "dragon-plus": (models.dragon, dragon),
    "contriever": (models.bert, mean),
    "minilm": (models.bert, lambda *given: unit(mean(*given))),
    "bge-small-en-v1.5": (models.bert, bge),
    "bge-base-en-v1.5": (models.bert, bge),
    "bge-large-en-v1.5": (models.bert, bge),
    "gtr-base": (models.gtr, gtr),
    "gtr-xxl": (models.gtr, gtr),
    "sgpt": (models.gptj, sgpt),
    "sgpt-125m": (models.gpt_neo, sgpt),
}


@pytest.mark.parametrize("name", ROWS)
def test_vectors_are_those_of_the_published_recipe(name: str, tmp_path: Path) -> None:
    make, expected = ROWS[name]
    directory = make(tmp_path / "model")
    encoder = encoders.load(f"{name}={directory}", precision="fp32")
    queries, passages = encoder.encode_queries(QUERIES), encoder.encode_passages(PASSAGES)
    assert queries.dtype == passages.dtype == np.float32
    assert encoder.dimension == queries.shape[1] == passages.shape[1]
    assert encoder.name == name
    for i in (0, 1, 2, len(QUERIES) - 1):
        np.testing.assert_allclose(queries[i], expected(directory, "query", QUERIES[i]).numpy(), atol=1e-5, rtol=1e-5)
    for i in (0, 1, 2, len(PASSAGES) - 1):
        np.testing.assert_allclose(
            passages[i], expected(directory, "passage", PASSAGES[i]).numpy(), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("name", ["ance", "tas-b", "simlm", "contriever", "gtr-base", "sgpt", "sgpt-125m"])
def test_a_vector_does_not_depend_on_its_batch_or_neighbours(name: str, tmp_path: Path) -> None:
    encoder = encoders.load(f"{name}={ROWS[name][0](tmp_path / 'model')}", precision="fp32")
    alone = np.concatenate([encoder.encode_passages([passage]) for passage in PASSAGES])
    rows = encoder.tokenise_passages(PASSAGES)
    assert len({len(row) for row in rows}) > 5
    for budget in (1, 100, 10_000):
        np.testing.assert_allclose(encoder.encode_rows("passage", rows, budget), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_passages(PASSAGES[::-1])[::-1], alone, atol=1e-5)
