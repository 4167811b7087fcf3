from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from llm_retriever.adaptation.query_likelihood import Pair, PairCollator
from llm_retriever.data.collection import Passage
from llm_retriever.models import masks
from llm_retriever.models.card import Lineage
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt
from llm_retriever.reranking.query_packing import Pack, batch_of, mask_of, packs

QUERIES = {"a": [11, 2], "b": [12, 13, 2], "c": [14, 15, 16, 2]}
DOCUMENTS = {"x": [1, 5, 6], "y": [1, 7, 8, 9, 9, 9, 9]}


def packed(pairs: list[tuple[str, str]]) -> list[Pack]:
    return packs(pairs, QUERIES, DOCUMENTS, [3])


def test_queries_of_a_passage_share_rows_of_at_most_twice_its_length():
    pairs = [("a", "x"), ("a", "y"), ("b", "y"), ("b", "x"), ("c", "y"), ("c", "x")]
    rows = packed(pairs)
    assert [row.pairs for row in rows] == [[0], [1, 2], [3], [4], [5]]
    assert all(len(row) <= max(2 * row.start, row.start + 4) for row in rows)
    assert [row.ids for row in rows[:2]] == [[1, 5, 6, 3, 11, 2], [1, 7, 8, 9, 9, 9, 9, 3, 11, 2, 12, 13, 2]]


def test_every_token_of_a_query_is_read_one_before_it_and_the_first_at_the_embedding_token():
    (row,) = packed([("a", "y"), ("b", "y")])
    assert list(row.readings()) == [(7, 11, 0), (8, 2, 0), (7, 12, 1), (10, 13, 1), (11, 2, 1)]
    assert list(row.readings(end_of_sequence=False)) == [(7, 11, 0), (7, 12, 1), (10, 13, 1)]


def test_positions_of_every_query_begin_where_those_of_the_first_one_do():
    batch = batch_of(packed([("a", "y"), ("b", "y"), ("a", "x")]), pad=0)
    assert batch["position_ids"][0].tolist() == [*range(8), 8, 9, 8, 9, 10]
    assert batch["segments"].tolist() == [[0] * 8 + [1] * 2 + [2] * 3, [0] * 4 + [1] * 2 + [0] * 7]
    assert batch["embedding"].tolist() == [7, 3]
    assert batch["attention_mask"].sum(dim=1).tolist() == [13, 6]


@pytest.mark.parametrize("block", [False, True], ids=["causal", "block"])
def test_a_query_sees_the_passage_or_its_embedding_token_and_itself(block: bool):
    batch = batch_of(packed([("a", "y"), ("b", "y")]), pad=0)
    seen = mask_of(batch, block, torch.float32)[0, 0] == 0
    before = [7] if block else list(range(8))
    assert seen[8].nonzero().flatten().tolist() == [*before, 8]
    assert seen[12].nonzero().flatten().tolist() == [*before, 10, 11, 12]
    assert seen[7].nonzero().flatten().tolist() == list(range(8))


def test_rows_of_one_query_need_no_mask_and_under_the_block_have_that_of_stage_one():
    batch = batch_of(packed([("a", "x"), ("c", "y")]), pad=0)
    assert mask_of(batch, False, torch.float32) is None
    expected = masks.attention_block(batch["attention_mask"], batch["embedding"], torch.float32)
    assert torch.equal(mask_of(batch, True, torch.float32), expected)


def test_a_row_of_one_query_is_the_row_of_stage_one_to_the_token(backbone_directory: Path):
    tokenizer = AutoTokenizer.from_pretrained(backbone_directory)
    lookup = {"p": Passage("p", "River", "is old"), "q": Passage("q", "", "The  engine\nwas built </s> by hand " * 20)}
    template = QueryPrompt.of(Lineage("random"))
    template = replace(template, recipe=replace(template.recipe, passage_length=90, query_length=24))
    pairs = [("which river is old", "p"), ("who built it 🙂", "q")]
    trained = PairCollator(template.recipe, ("eos",), tokenizer, lookup, "right")([Pair(*pair, "0") for pair in pairs])
    scorer = QueryLikelihood(None, tokenizer, template, lookup)
    batch = batch_of(packs(pairs, *scorer.tokenised(pairs), scorer.rows.embedding), scorer.rows.end)
    for name in ("input_ids", "attention_mask", "embedding"):
        assert torch.equal(batch[name], trained[name])
