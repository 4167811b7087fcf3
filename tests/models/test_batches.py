"""Batches: rows of ids in, one vector a row out."""

from __future__ import annotations

import doctest
import random

import pytest
import torch

from llm_retriever.models import batches
from llm_retriever.models.batches import pad_id, padded, token_batches
from llm_retriever.models.pooling import pooled


def test_padding_fills_the_named_side_up_to_the_longest_row():
    left = padded([[5, 6, 7], [8]], pad=0, side="left")
    right = padded([[5, 6, 7], [8]], pad=0, side="right")
    assert left["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_a_width_can_be_rounded_up():
    assert padded([[1, 2, 3]], pad=0, multiple_of=8)["input_ids"].shape == (1, 8)
    assert padded([[1] * 8], pad=0, multiple_of=8)["input_ids"].shape == (1, 8)


def test_the_mask_comes_from_lengths_so_a_real_token_may_have_the_pad_id():
    assert padded([[2, 9, 2], [2]], pad=2, side="right")["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_token_is_read_on_either_padding_side(side):
    rows = [[1, 2, 3], [4], [5, 6]]
    batch = padded(rows, pad=0, side=side)
    hidden = batch["input_ids"].float().unsqueeze(-1).expand(-1, -1, 2)
    assert pooled(hidden, batch["attention_mask"])[:, 0].tolist() == [3, 4, 6]


def test_normalised_vectors_have_length_one_and_are_float32():
    hidden = torch.randn(3, 4, 8, dtype=torch.bfloat16)
    vectors = pooled(hidden, torch.ones(3, 4), normalise=True)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mean_is_over_so_many_last_real_tokens_on_either_padding_side(side):
    rows, counts = [[1, 2, 3, 6], [4], [5, 8]], [3, 1, 2]
    batch = padded(rows, pad=9, side=side)
    hidden = batch["input_ids"].float().unsqueeze(-1).expand(-1, -1, 2)
    vectors = pooled(hidden, batch["attention_mask"], "text", torch.tensor(counts))
    expected = [sum(row[-count:]) / count for row, count in zip(rows, counts, strict=True)]
    torch.testing.assert_close(vectors[:, 0], torch.tensor(expected))
    assert torch.equal(vectors[:, 0], vectors[:, 1])


def test_the_mean_of_one_token_is_the_last_token():
    hidden, mask = torch.randn(3, 5, 4), padded([[1] * 5, [1, 1], [1] * 3], pad=0)["attention_mask"]
    one = torch.ones(3, dtype=torch.long)
    torch.testing.assert_close(pooled(hidden, mask, "text", one), pooled(hidden, mask))


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_stands_on_the_pads_never_reaches_the_mean(side):
    batch = padded([[1, 2, 3], [4]], pad=0, side=side)
    mask, counts = batch["attention_mask"], torch.tensor([2, 1])
    hidden = torch.randn(2, 3, 4)
    other = torch.where(mask.bool()[..., None], hidden, torch.tensor(1e6))
    assert torch.equal(pooled(hidden, mask, "text", counts), pooled(other, mask, "text", counts))


class Symbols:
    """A tokenizer's special ids."""

    def __init__(self, pad: int | None, end: int | None) -> None:
        self.pad_token_id, self.eos_token_id = pad, end


def test_rows_are_filled_up_with_the_padding_token_or_with_another_one():
    assert [pad_id(Symbols(pad, end)) for pad, end in ((0, 2), (3, 2), (None, 2), (None, None))] == [0, 3, 2, 0]


def test_token_batches_hold_every_row_once_and_keep_to_the_budget():
    draw = random.Random(0)
    lengths = [draw.randint(1, 60) for _ in range(500)]
    found = token_batches(lengths, budget=256)
    assert sorted(i for batch in found for i in batch) == list(range(500))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 256 for batch in found)


def test_token_batches_begin_with_the_longest_rows_and_waste_little():
    draw = random.Random(0)
    lengths = [draw.randint(10, 200) for _ in range(2000)]
    found = token_batches(lengths, budget=4096)
    widths = [max(lengths[i] for i in batch) for batch in found]
    assert widths == sorted(widths, reverse=True)
    slots = sum(len(batch) * width for batch, width in zip(found, widths, strict=True))
    in_order = sum(20 * max(lengths[i : i + 20]) for i in range(0, 2000, 20))
    assert 1 - sum(lengths) / slots < 0.05
    assert 1 - sum(lengths) / in_order > 0.4


def test_a_row_above_the_budget_travels_alone():
    assert token_batches([3, 50, 4], budget=10) == [[1], [2, 0]]
    assert token_batches([], budget=10) == []


def test_the_documented_example_runs():
    assert doctest.testmod(batches).attempted > 0
    assert doctest.testmod(batches).failed == 0
