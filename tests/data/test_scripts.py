"""Languages that write no spaces between words, wherever a text is taken for a row of words."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llm_retriever.adaptation.consecutive import boundaries
from llm_retriever.adaptation.ebae_ebar import _start_of
from llm_retriever.adaptation.query_likelihood import Pair, PairCollator
from llm_retriever.bm25.similarities import bm25
from llm_retriever.bm25.sparse import SparseIndex
from llm_retriever.data.collection import Collection, Passage
from llm_retriever.data.collection_report import statistics_markdown
from llm_retriever.data.scripts import is_unspaced, language_of, words
from llm_retriever.data.sources.near_duplicates import NearDuplicates, Resembling
from llm_retriever.methods.adaptation import QUERY_LIKELIHOOD
from tests.data.sources.test_layouts import prepared, write_lines

TEXTS = {
    "zh": ("冰川是由积雪压实而成的缓慢移动的巨大冰体", "小提琴是一种四根弦的弓弦乐器", "冰川"),
    "ja": ("氷河は積もった雪が圧縮されてできたゆっくりと動く氷の塊です", "バイオリンは四本の弦を持つ楽器です", "氷河"),
    "th": ("ธารน้ำแข็งคือมวลน้ำแข็งขนาดใหญ่ที่เคลื่อนตัวช้าๆ", "ไวโอลินเป็นเครื่องดนตรีที่มีสี่สาย", "ธารน้ำแข็ง"),
}
SPACED = {
    "ko": ("빙하는 눈이 쌓여 만들어진 거대한 얼음덩어리이다", "바이올린은 네 줄의 악기이다", "빙하"),
    "ru": ("Ледники медленно движутся по склонам гор", "Скрипка имеет четыре струны", "ледник"),
    "ar": ("النهر الجليدي كتلة كبيرة من الجليد", "الكمان آلة موسيقية", "الجليد"),
    "hi": ("हिमनद बर्फ का विशाल पिंड है", "वायलिन एक वाद्य यंत्र है", "हिमनद"),
    "en": ("A glacier is a body of moving ice", "The violin has four strings", "glaciers"),
}


@pytest.fixture(scope="module")
def tokenizer(backbone_directory: Path) -> Any:
    return AutoTokenizer.from_pretrained(backbone_directory)


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_without_spaces_has_a_word_for_each_character(language: str) -> None:
    text = TEXTS[language][0]
    assert is_unspaced(text)
    assert len(words(text)) > len(text) * 0.9
    assert words(f"of {text}, it's")[0] == "of"


@pytest.mark.parametrize("language", SPACED)
def test_other_texts_are_parted_as_before(language: str) -> None:
    text = SPACED[language][0]
    assert not is_unspaced(text)
    if language not in ("hi", "ar"):  # Their vowel signs are no letters to Python.
        assert words(text) == text.split()


@pytest.mark.parametrize("language", [*TEXTS, *SPACED])
def test_the_language_is_told_by_the_script(language: str) -> None:
    assert language_of((TEXTS | SPACED)[language][:2]) == language


@pytest.mark.parametrize("language", TEXTS)
def test_near_copies_are_found_by_characters(language: str) -> None:
    one, other, _ = TEXTS[language]
    near = one[:-1]
    known = Resembling([one], shingle=3, similarity=0.8)
    assert near in known
    assert other not in known
    seen = NearDuplicates(shingle=3, similarity=0.5)
    assert (seen.adds(one), seen.adds(near), seen.adds(other)) == (True, False, True)


@pytest.mark.parametrize("language", [*TEXTS, "en"])
def test_hiding_takes_a_part_of_a_text_and_says_so_once(tokenizer, language, caplog) -> None:
    text = (TEXTS | SPACED)[language][0] * 3
    recipe = replace(QUERY_LIKELIHOOD["default"], corruption_unit="word", corruption_ratio=0.5, passage_length=400)
    collate = PairCollator(recipe, ["eos"], tokenizer, {"p": Passage("p", "", text)})  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        rows = [collate._documents([Pair("q", "p", f"{i}")])[0] for i in range(20)]
    plain = replace(recipe, corruption_ratio=0.0)
    whole = PairCollator(plain, ["eos"], tokenizer, {"p": Passage("p", "", text)})._documents([Pair("q", "p", "")])[0]  # type: ignore[arg-type]
    if language != "en":
        kept = [sum(a == b for a, b in zip(row, whole, strict=True)) / len(whole) for row in rows]
        assert 0.3 < min(kept) <= max(kept) < 0.9
    assert len({tuple(row) for row in rows}) == 20
    notes = [r.message for r in caplog.records if "token by token" in r.message]
    assert len(notes) == (language != "en")


def test_a_batch_of_both_kinds_is_that_of_each_alone(tokenizer) -> None:
    lookup = {name: Passage(name, "", (TEXTS | SPACED)[name][0]) for name in ("zh", "en", "th")}
    recipe = replace(QUERY_LIKELIHOOD["default"], corruption_unit="word", passage_length=300)
    collate = PairCollator(recipe, ["eos"], tokenizer, lookup)  # type: ignore[arg-type]
    pairs = [Pair("q", name, f"seed {i}") for i, name in enumerate(["zh", "en", "th", "en"])]
    assert collate._documents(pairs) == [collate._documents([pair])[0] for pair in pairs]


def test_consecutive_parts_of_a_text_without_spaces_and_stops() -> None:
    text = TEXTS["zh"][0] * 3
    assert boundaries(text) == [len(text) // 2]
    assert boundaries("x" * 60) == []


def test_the_start_of_a_long_text_with_an_early_space_is_not_its_first_word() -> None:
    text = "Title " + TEXTS["zh"][0] * 100
    assert _start_of(text, 200) == text
    assert _start_of("word " * 100, 200) == ("word " * 40)[:-1]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Collection]:
    """A collection of two passages for each language."""
    found = {}
    for language, (one, other, query) in (TEXTS | SPACED).items():
        source = tmp_path_factory.mktemp(language)
        rows = [{"_id": "p1", "text": one}, {"_id": "p2", "text": other}]
        write_lines(source / "source" / "corpus.jsonl", rows)
        write_lines(source / "source" / "queries.jsonl", [{"_id": "q", "text": query}])
        write_lines(source / "source" / "qrels" / "test.tsv", ["q\tp1\t1"])
        found[language] = prepared(source / "source", source / "collection")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("language", ["zh", "ja", "th", "ru"])
def test_bm25_finds_a_word_in_the_language_of_the_corpus(sources: dict[str, Collection], language: str) -> None:
    made = sources[language]
    with SparseIndex(made, threads=1) as index:
        assert index.language == language
        ((_, ranking),) = index.search(made.queries("test"), 2, bm25(0.9, 0.4))
    assert [passage for passage, _ in ranking] == ["p1"]


@pytest.mark.slow
def test_a_language_that_is_given_counts(sources: dict[str, Collection]) -> None:
    rows = []
    for language in ("en", "de"):
        with SparseIndex(sources["en"], threads=1, language=language) as index:
            rows.append(dict(index.search({"a": "glaciers", "b": "The"}, 2, bm25(0.9, 0.4))))
    assert [[name for name, _ in found["a"]] for found in rows] == [["p1"], []]
    assert [[name for name, _ in found["b"]] for found in rows] == [[], ["p2"]]


def test_statistics_count_characters_and_say_so(sources: dict[str, Collection]) -> None:
    words_in = sources["zh"].manifest["words"]["passage"]
    assert words_in["max"] == len(TEXTS["zh"][0])
    assert words_in["unspaced"] == 2
    note = "Each character of a script that writes no spaces counts as a word."
    assert note in statistics_markdown(sources["zh"].manifest)
    assert note not in statistics_markdown(sources["en"].manifest)
    assert "unspaced" not in json.dumps(sources["en"].manifest)
