"""Texts become the ids that the authors' released code gives, method by method; `tests/released.py` tells how they were made."""

from __future__ import annotations

import pytest

from llm_retriever.methods import METHODS
from llm_retriever.models.prompts import PromptEncoder, passage_text
from tests import released

PRINTED_ALONE = {"llm-ql paper", "llama2vec paper"}
"""Rows that are worded as a paper prints them, which no released code does."""
ROWS = [row for name in METHODS for recipe in ("paper", "released") if (row := f"{name} {recipe}") not in PRINTED_ALONE]
each_kind = pytest.mark.parametrize("kind", released.TOKENIZERS)


def worded(kind: str, name: str, recipe: str, side: str, text: str, length: int = 1000) -> tuple[list[int], int]:
    """The ids of a text that a row of the table gives, and how many of the last of them stand for it."""
    tokenizer, row = released.with_new_tokens(released.TOKENIZERS[kind]()), METHODS[name][recipe]
    encoder = PromptEncoder(tokenizer, getattr(row, side), length)
    (ids,) = encoder.batch([text])
    return ids, encoder.pooled(ids, "text")


@each_kind
@pytest.mark.parametrize("row", ROWS)
def test_texts_become_the_ids_that_the_released_code_gives(row: str, kind: str):
    name, recipe = row.split()
    texts = {"query": released.QUERY, "passage": passage_text(released.TITLE, released.TEXT)}
    for side, text in texts.items():
        ids, pooled = worded(kind, name, recipe, side, text)
        found = released.IDS[kind].get(f"{row} {side}") or released.IDS[kind][f"{name} {side}"]
        assert ids == found["ids"]
        assert pooled == found.get("pooled", pooled)


@each_kind
@pytest.mark.parametrize("row", ["llm-ql released", "repllama paper", "repllama released"])
def test_an_empty_title_leaves_one_token_less_than_in_the_released_training(row: str, kind: str):
    ids, _ = worded(kind, *row.split(), "passage", passage_text("", released.TEXT))
    found = released.IDS[kind].get(f"{row} untitled") or released.IDS[kind]["llm-ql untitled"]
    assert len(found["ids"]) == len(ids) + 1
    if row == "repllama released":
        assert ids == released.IDS[kind][f"{row} untitled encoded"]["ids"], "as released where texts are encoded"


@each_kind
def test_a_first_word_is_averaged_with_the_space_that_its_row_has_before_it(kind: str):
    """The released code counts the tokens that the text has alone: one less where ` w` is not a token but `w` is."""
    ids, pooled = worded(kind, "llm2vec", "released", "query", released.FIRST_WORD)
    found = released.IDS[kind]["llm2vec first word"]
    assert ids == found["ids"]
    assert pooled - found["pooled"] == {"sentencepiece": 0, "byte-level": 1}[kind]


@each_kind
def test_summarize_cuts_a_body_to_the_released_32_tokens(kind: str):
    text = passage_text(*released.PASSAGES[1])
    ids, _ = worded(kind, "summarize", "released", "passage", text, length=71)
    assert ids == released.IDS[kind]["summarize cut"]["ids"]
