"""Texts in prompts: prompts, embedding tokens and end-of-sequence survive any length; only the body is cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llm_retriever.errors import InputError
from llm_retriever.methods import METHODS, QUERY_LIKELIHOOD, PromptTemplate
from llm_retriever.models.prompts import PromptEncoder, passage_text, symbol_ids
from tests.conftest import passages

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
TEXTS = [
    "The river in the north is old.",
    "river " * 400,
    "supercalifragilistic" * 60,
    "  spaces   in \t the\n\n middle  ",
    "Grüße aus Köln — naïve café, 你好世界 and 🙂🙂🙂 to all",
    "🙂" * 300,
    "漢字" * 300,
    "e\u0301" * 200,
    "ﬁ ﬂ ㎏ Ⅳ " * 80,
    "\u2028\u00a0x\u200b" * 90,
    "_ _ _ _ word _ _",
    "a",
    "",
    "   \n ",
]
ROWS = {f"{name} {recipe}": row for name, recipes in METHODS.items() for recipe, row in recipes.items()}
WORDINGS = {f"{name} {side}": getattr(row, side) for name, row in ROWS.items() for side in ("query", "passage")} | {
    f"ql {recipe} document": row.document for recipe, row in QUERY_LIKELIHOOD.items()
}
AS_WRITTEN = {template: f"{name} as {template.tokenise}" for name, template in reversed(WORDINGS.items())}
OTHERWISE = {
    replace(template, tokenise=other): f"{name} as {other}"
    for name, template in reversed(WORDINGS.items())
    for other in ("whole", "pieces")
    if template.between is None
}
EVERY_WORDING = {name: template for template, name in {**OTHERWISE, **AS_WRITTEN}.items()}
"""Every different one, tokenised both ways."""


def training_texts() -> Iterator[str]:
    yield from (row["text"] for row in passages(200))
    yield from ("".join(w.prefix_pieces) + " river " + (w.between or "") + w.suffix for w in WORDINGS.values())


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    return wrapped(tokenizer)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama-2: every string begins with ▁, no token crosses a space, characters outside the vocabulary become bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    spaces = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), spaces])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL + fallback, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(training_texts(), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return wrapped(tokenizer)


def compatibility_forms() -> PreTrainedTokenizerFast:
    """A normaliser that changes the number of characters (NFKC), as many multilingual tokenizers have."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


MAKERS = {"byte-level": byte_level, "sentencepiece": sentencepiece_like, "nfkc": compatibility_forms}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def bytes_tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


def plain(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def without_spaces(text: str) -> str:
    return "".join(text.split())


def prompt_length(tokenizer: PreTrainedTokenizerFast, template: PromptTemplate) -> int:
    pieces = (*template.prefix_pieces, template.between or "", template.suffix)
    return 1 + sum(len(plain(tokenizer, piece)) for piece in pieces) + 1


@pytest.mark.parametrize("name", EVERY_WORDING)
def test_prompt_and_embedding_token_survive_every_length(tokenizer: PreTrainedTokenizerFast, name: str):
    template = EVERY_WORDING[name]
    least = prompt_length(tokenizer, template) + (1 if template.between is None else 2)
    for length in (least, least + 1, least + 7, least + 60):
        encoder = PromptEncoder(tokenizer, template, length, [2])
        for text, ids in zip(TEXTS, encoder.batch(TEXTS), strict=True):
            assert len(ids) <= length, (text, length)
            assert ids[0] == 1
            assert ids[-1] == 2
            assert ids.count(1) == ids.count(2) == 1
            shown = without_spaces(tokenizer.decode(ids[1:-1]))
            assert shown.startswith(without_spaces("".join(template.prefix_pieces))), (text, length)
            assert shown.endswith(without_spaces(template.suffix)), (text, length)
            assert without_spaces(template.between or "") in shown, (text, length)


def test_whole_equals_tokenising_the_whole_string_when_it_fits(tokenizer: PreTrainedTokenizerFast):
    for template in (w for w in WORDINGS.values() if w.tokenise == "whole"):
        encoder = PromptEncoder(tokenizer, template, 3000, [2])
        for text, ids in zip(TEXTS, encoder.batch(TEXTS), strict=True):
            assert ids == [1, *plain(tokenizer, template.prefix + text.strip() + template.suffix), 2]


def test_whole_that_is_cut_equals_tokenising_a_shorter_body(tokenizer: PreTrainedTokenizerFast):
    template = METHODS["llm-ql"]["default"].passage
    encoder = PromptEncoder(tokenizer, template, 80, [2])
    for text in TEXTS:
        body = text.strip()[:250]
        shorter = [template.prefix + body[:n] + template.suffix for n in range(len(body) + 1)]
        assert encoder.ids(body)[1:-1] in tokenizer(shorter, add_special_tokens=False)["input_ids"]


def test_a_cut_wastes_little_room(tokenizer: PreTrainedTokenizerFast):
    encoder = PromptEncoder(tokenizer, METHODS["llm-ql"]["default"].passage, 120, [2])
    ids = encoder.ids("The river behind the hill needs water and has a long history. " * 50)
    assert 116 <= len(ids) <= 120


def test_pieces_are_the_ids_of_each_piece(tokenizer: PreTrainedTokenizerFast):
    template = METHODS["llama2vec"]["default"].passage
    head, tail = plain(tokenizer, template.prefix), plain(tokenizer, template.suffix)
    for length in (80, 3000):
        encoder = PromptEncoder(tokenizer, template, length, [2])
        room = length - len(head) - len(tail) - 2
        for text, ids in zip(TEXTS, encoder.batch(TEXTS), strict=True):
            assert ids == [1, *head, *plain(tokenizer, text.strip())[:room], *tail, 2]


def test_sentencepiece_pieces_differ_from_the_whole():
    tokenizer, template = sentencepiece_like(), METHODS["llm-ql"]["default"].passage
    whole = PromptEncoder(tokenizer, template, 200, [2]).ids("river")
    assert whole != PromptEncoder(tokenizer, replace(template, tokenise="pieces"), 200, [2]).ids("river")


@pytest.mark.parametrize("tokenise", ["whole", "pieces"])
def test_a_book_gives_the_same_ids_as_its_beginning(tokenizer: PreTrainedTokenizerFast, tokenise: str):
    template = replace(METHODS["llm-ql"]["default"].passage, tokenise=tokenise)
    encoder = PromptEncoder(tokenizer, template, 100, [2])
    beginning = "The river in the north is old and the engine was built by hand. " * 12
    assert encoder.ids(beginning * 200) == encoder.ids(beginning)


@pytest.mark.parametrize("tokenise", ["whole", "pieces"])
def test_a_long_text_of_long_tokens_fills_its_room(bytes_tokenizer: PreTrainedTokenizerFast, tokenise: str):
    """Where a token stands for very many characters, the beginning that is tried first is too short."""
    bytes_tokenizer.add_tokens(["=" * 200])
    template = replace(METHODS["llm-ql"]["default"].passage, tokenise=tokenise)
    encoder = PromptEncoder(bytes_tokenizer, template, 90, [2])
    assert len(encoder.ids(("=" * 200 + " ") * 400)) in (89, 90)  # A cut body does not end with a space.


@pytest.mark.parametrize("tokenise", ["whole", "pieces"])
def test_names_of_special_tokens_in_a_text_are_ordinary_characters(tokenizer: PreTrainedTokenizerFast, tokenise: str):
    template = replace(METHODS["llm-ql"]["default"].passage, tokenise=tokenise)
    ids = PromptEncoder(tokenizer, template, 200, [2]).ids("a </s> b <s> c <pad> d")
    assert ids.count(2) == ids.count(1) == 1
    assert 3 not in ids
    assert "</s>b<s>c<pad>d" in without_spaces(tokenizer.decode(ids[1:-1]))


def test_several_embedding_tokens_stand_at_the_end_in_order(bytes_tokenizer: PreTrainedTokenizerFast):
    closing = (
        symbol_ids(bytes_tokenizer, ("river", "eos", "eos")) if "river" in bytes_tokenizer.get_vocab() else [9, 2, 2]
    )
    encoder = PromptEncoder(bytes_tokenizer, METHODS["llm-ql"]["default"].passage, 70, closing)
    assert all(ids[-3:] == closing and len(ids) <= 70 for ids in encoder.batch(TEXTS))


def test_a_tokenizer_without_bos_begins_with_the_prompt():
    tokenizer = byte_level()
    tokenizer.bos_token = None
    template = METHODS["llm-ql"]["default"].query
    ids = PromptEncoder(tokenizer, template, 100, [2]).ids("river")
    assert ids == [*plain(tokenizer, template.prefix + "river" + template.suffix), 2]


def test_a_batch_gives_the_same_as_one_by_one(tokenizer: PreTrainedTokenizerFast):
    for tokenise, length in itertools.product(("whole", "pieces"), (75, 200)):
        template = replace(METHODS["llm-ql"]["default"].passage, tokenise=tokenise)
        encoder = PromptEncoder(tokenizer, template, length, [2])
        assert encoder.batch(TEXTS) == [encoder.ids(text) for text in TEXTS]
    assert encoder.batch([]) == []


def test_a_length_without_room_for_a_text_is_refused_with_the_hint(tokenizer: PreTrainedTokenizerFast):
    template = METHODS["llm-ql"]["default"].query
    prompt = prompt_length(tokenizer, template)
    with pytest.raises(InputError, match=f"prompt alone takes {prompt}; use at least {prompt + 8}"):
        PromptEncoder(tokenizer, template, prompt, [2])
    twice = METHODS["echo"]["released"].query
    prompt = prompt_length(tokenizer, twice)
    with pytest.raises(InputError, match=f"two copies of a text: .* takes {prompt}; use at least {prompt + 16}"):
        PromptEncoder(tokenizer, twice, prompt + 1)


def test_a_saved_and_loaded_tokenizer_words_alike(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    template = METHODS["llm-ql"]["default"].passage
    assert PromptEncoder(loaded, template, 90, [2]).batch(TEXTS) == PromptEncoder(tokenizer, template, 90, [2]).batch(
        TEXTS
    )


def test_title_and_text_are_joined_and_an_empty_title_leaves_no_trace():
    assert passage_text("River", "is old") == "River is old"
    assert passage_text("", " is old ") == "is old"
    assert passage_text("River", "") == "River"
    assert passage_text("River", "is old", joiner=" : ") == "River : is old"


def test_embedding_tokens_are_looked_up_and_unknown_ones_refused(bytes_tokenizer: PreTrainedTokenizerFast):
    assert symbol_ids(bytes_tokenizer, ("eos", "<pad>")) == [2, 3]
    with pytest.raises(InputError, match="no token '<s1>'"):
        symbol_ids(bytes_tokenizer, ("<s1>",))


def test_a_tokenizer_without_the_new_tokens_is_refused(bytes_tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(InputError, match="no token '<s1>'"):
        PromptEncoder(bytes_tokenizer, METHODS["llama2vec"]["default"].passage, 200)


@pytest.mark.parametrize("recipe", QUERY_LIKELIHOOD)
def test_stage_one_words_a_passage_in_the_ids_of_stage_two(tokenizer: PreTrainedTokenizerFast, recipe: str):
    """But for the spaces that the released code has in one stage alone."""
    document, passage = QUERY_LIKELIHOOD[recipe].document, METHODS["llm-ql"][recipe].passage
    if recipe == "released":
        passage = replace(passage, prefix=passage.prefix[:-1], suffix=f"{passage.suffix} ")
    one, two = (PromptEncoder(tokenizer, template, 3000, [2]) for template in (document, passage))
    assert one.batch(TEXTS) == two.batch(TEXTS)


@pytest.mark.parametrize("name", WORDINGS)
def test_the_place_of_a_text_in_its_row_is_known(tokenizer: PreTrainedTokenizerFast, name: str):
    """Where a token holds a part of the prompt and of the text, as the trained SentencePiece has, it is the text's."""
    template = WORDINGS[name]
    encoder = PromptEncoder(tokenizer, template, 400, [2])
    lead, tail = (without_spaces(part) for part in ("".join(template.prefix_pieces), template.suffix))
    for text in ("river", "The river in the north, which is old", "bridge " * 500):
        (ids,) = encoder.batch([text])
        first, behind = encoder.body_span(ids)
        before, after = (without_spaces(tokenizer.decode(part)) for part in (ids[1:first], ids[behind:-1]))
        assert lead.startswith(before)
        assert tail.endswith(after)
        assert len(before) >= len(lead) - 12
        assert len(after) >= len(tail) - 12
        assert without_spaces(text)[:5] in without_spaces(tokenizer.decode(ids[first:behind]))
