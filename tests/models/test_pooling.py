"""The table of poolings: which states each row reads, and that whatever names a pooling names a row."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from llm_retriever.encoders.retriever import Retriever
from llm_retriever.encoders.table import TABLE
from llm_retriever.errors import InputError
from llm_retriever.methods import METHODS
from llm_retriever.models.batches import padded
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.pooling import POOLINGS, pool


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_token_is_read_on_either_padding_side(side):
    rows = [[1, 2, 3], [4], [5, 6]]
    batch = padded(rows, pad=0, side=side)
    hidden = batch["input_ids"].float().unsqueeze(-1).expand(-1, -1, 2)
    assert pool(hidden, batch["attention_mask"])[:, 0].tolist() == [3, 4, 6]


def test_normalised_vectors_have_length_one_and_are_float32():
    hidden = torch.randn(3, 4, 8, dtype=torch.bfloat16)
    vectors = pool(hidden, torch.ones(3, 4), normalise=True)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mean_is_over_so_many_last_real_tokens_on_either_padding_side(side):
    rows, counts = [[1, 2, 3, 6], [4], [5, 8]], [3, 1, 2]
    batch = padded(rows, pad=9, side=side)
    hidden = batch["input_ids"].float().unsqueeze(-1).expand(-1, -1, 2)
    vectors = pool(hidden, batch["attention_mask"], "text", torch.tensor(counts))
    expected = [sum(row[-count:]) / count for row, count in zip(rows, counts, strict=True)]
    torch.testing.assert_close(vectors[:, 0], torch.tensor(expected))
    assert torch.equal(vectors[:, 0], vectors[:, 1])


def test_the_mean_of_one_token_is_the_last_token():
    hidden, mask = torch.randn(3, 5, 4), padded([[1] * 5, [1, 1], [1] * 3], pad=0)["attention_mask"]
    one = torch.ones(3, dtype=torch.long)
    torch.testing.assert_close(pool(hidden, mask, "text", one), pool(hidden, mask))


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_on_the_pads_never_reaches_the_mean(side):
    batch = padded([[1, 2, 3], [4]], pad=0, side=side)
    mask, counts = batch["attention_mask"], torch.tensor([2, 1])
    hidden = torch.randn(2, 3, 4)
    other = torch.where(mask.bool()[..., None], hidden, torch.tensor(1e6))
    assert torch.equal(pool(hidden, mask, "text", counts), pool(other, mask, "text", counts))


def test_weighted_and_masked_means_by_hand() -> None:
    hidden = torch.tensor([[[1.0], [2.0], [4.0]], [[3.0], [5.0], [9.0]]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    torch.testing.assert_close(pool(hidden, mask, "mean"), torch.tensor([[7 / 3], [4.0]]))
    torch.testing.assert_close(pool(hidden, mask, "weighted mean"), torch.tensor([[17 / 6], [13 / 3]]))
    torch.testing.assert_close(pool(hidden, mask, "mean", skip=1), torch.tensor([[3.0], [5.0]]))
    # A text that is all prefix keeps its last token.
    torch.testing.assert_close(pool(hidden, mask, "mean", skip=7), torch.tensor([[4.0], [5.0]]))
    torch.testing.assert_close(pool(hidden, mask, "last"), torch.tensor([[4.0], [5.0]]))
    torch.testing.assert_close(pool(hidden, mask, "cls"), torch.tensor([[1.0], [3.0]]))


def test_every_method_and_every_published_encoder_names_a_row():
    used = {row.pooling for recipes in METHODS.values() for row in recipes.values()}
    used |= {row.wiring.pooling for row in TABLE.values()}
    assert used <= set(POOLINGS)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_row_gives_one_float32_vector_a_text_and_reads_no_pads(pooling: str):
    mask, hidden = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]), torch.randn(2, 4, 8, dtype=torch.bfloat16)
    other = torch.where(mask.bool()[..., None], hidden, torch.tensor(7.0, dtype=torch.bfloat16))
    vectors = pool(hidden, mask, pooling)
    assert (vectors.shape, vectors.dtype) == ((2, 8), torch.float32)
    assert torch.equal(vectors, pool(other, mask, pooling))


def test_a_card_with_a_pooling_that_is_not_known_is_refused():
    card = RetrieverCard.of(METHODS["llm-ql"]["default"], Lineage("a test"))
    with pytest.raises(InputError, match="'median' is no pooling; use one of cls, mean,"):
        Retriever(torch.nn.Linear(1, 1), None, dataclasses.replace(card, pooling="median"))
