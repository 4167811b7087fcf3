"""Consecutive texts out of single passages: where they are parted, and which passages are left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_retriever.adaptation.consecutive import PartsDataset, boundaries, consecutive_texts
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError


def test_a_text_is_parted_at_a_sentence_boundary():
    text = "The river is old and slow. It needs water now. The engine was built by hand."
    assert [text[place:] for place in boundaries(text)] == [
        "It needs water now. The engine was built by hand.",
        "The engine was built by hand.",
    ]


def test_one_sentence_is_parted_at_the_space_nearest_its_middle():
    text = "the engine of the old harbour was built by hand"
    (place,) = boundaries(text)
    assert (text[:place], text[place:]) == ("the engine of the old ", "harbour was built by hand")


def test_text_without_spaces_is_parted_at_its_own_full_stops():
    text = "这条河非常古老而且流得很慢很慢很慢很慢。它需要很多很多的水才能够继续流下去流下去。"
    (place,) = boundaries(text)
    assert text[:place].endswith("很慢。")


@pytest.mark.parametrize("text", ["", "too short to part", "x" * 100, "Short. " + "y" * 60])
def test_too_short_texts_are_left_out(text: str):
    assert boundaries(text) == []


def parts_of(tmp_path: Path, rows: list[dict[str, str]], seed: int = 17) -> PartsDataset:
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    manifest = {"fingerprint": "", "splits": [], "counts": {"passages": len(rows)}, "files": {}}
    return PartsDataset(Collection(tmp_path, manifest), seed)


SENTENCES = " ".join(f"The größte river number {i} is very old." for i in range(12))


def test_the_parts_follow_each_other_and_are_the_passage(tmp_path: Path):
    rows = [
        {"_id": "a", "title": "", "text": "too short"},
        {"_id": "b", "title": "Größe", "text": SENTENCES},
        {"_id": "c", "title": "", "text": "the engine of the old harbour was built by hand"},
    ]
    dataset = parts_of(tmp_path, rows)
    assert [" ".join(dataset[i]) for i in range(len(dataset))] == [f"Größe {SENTENCES}", rows[2]["text"]]
    assert dataset[0].text.endswith(".")


def test_every_epoch_parts_elsewhere_and_a_resumed_one_alike(tmp_path: Path):
    rows = [{"_id": str(i), "title": "", "text": SENTENCES} for i in range(8)]
    first, again, other = (parts_of(tmp_path, rows, seed) for seed in (17, 17, 18))
    before = [first[i] for i in range(8)]
    assert before == [again[i] for i in range(8)] != [other[i] for i in range(8)]
    first.set_epoch(1)
    again.set_epoch(1)
    assert [first[i] for i in range(8)] == [again[i] for i in range(8)] != before


def test_a_collection_without_pairs_is_refused(tmp_path: Path):
    dataset = parts_of(tmp_path, [{"_id": "a", "title": "", "text": "too short"}])
    manifest = {"fingerprint": "", "splits": [], "counts": {"passages": 1}, "files": {}}
    assert len(dataset) == 0
    with pytest.raises(InputError, match=r"corpus\.jsonl: no passage has two parts"):
        consecutive_texts(Collection(tmp_path, manifest), 17)
