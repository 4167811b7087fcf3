"""Batches: rows of ids in, one vector a row out."""

from __future__ import annotations

import doctest
import random

from llm_retriever.models import batches
from llm_retriever.models.batches import pad_id, padded, token_batches


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
