from __future__ import annotations

from pathlib import Path

import pytest

from llm_retriever.data.collection import Passage, PassageLookup, passage_line
from llm_retriever.mining.false_negatives import EqualTexts, NearCopies, Sample, text_key

PASSAGES = [
    Passage("right", "A title", "Glaciers move  slowly."),
    Passage("twin", "Another title", "glaciers MOVE\nslowly."),
    Passage("other", "A title", "Glaciers melt."),
    Passage("echo", "", "do glaciers move?"),
]


def test_case_white_space_and_title_do_not_tell_texts_apart() -> None:
    twins = EqualTexts(PASSAGES, {"right"}, [])
    assert twins.key("twin") == twins.key("right") == text_key("Glaciers move slowly.")


def test_other_texts_are_not_kept() -> None:
    assert EqualTexts(PASSAGES, {"right"}, []).key("other") is None
    assert EqualTexts(PASSAGES, {"right"}, []).key("echo") is None
    assert EqualTexts(PASSAGES, {"right"}, []).key("unknown") is None


def test_a_passage_that_repeats_a_query_is_known() -> None:
    twins = EqualTexts(PASSAGES, {"right"}, ["Do glaciers move?"])
    assert twins.key("echo") == text_key("Do glaciers move?")


def test_there_may_be_no_positives_and_no_passages() -> None:
    assert EqualTexts(PASSAGES, set(), []).key("right") is None
    assert EqualTexts([], {"right"}, ["q"]).key("right") is None


WORDS = [f"word{number}" for number in range(20)]


@pytest.mark.parametrize(
    ("similarity", "copies"), [(0.7, {"near", "far"}), (0.85, {"near"}), (0.95, set()), (1.0, set())]
)
def test_near_copies_share_most_3_grams_with_a_positive(similarity: float, copies: set[str], tmp_path: Path) -> None:
    # 20 words are 18 3-grams. Another last word leaves 17 of 19 in common (0.89), another 11th word 15 of 21 (0.71).
    texts = {
        "right": " ".join(WORDS),
        "near": " ".join([*WORDS[:-1], "about"]),
        "far": " ".join([*WORDS[:10], "while", *WORDS[11:]]),
        "other": "a poem about the harbour",
    }
    lines = "".join(passage_line(Passage(name, "", text)) for name, text in texts.items())
    (tmp_path / "corpus.jsonl").write_text(lines)
    is_copy = NearCopies(PassageLookup(tmp_path / "corpus.jsonl"), similarity).of({"right", "unknown"})
    assert {name for name in ("near", "far", "other") if is_copy(name)} == copies


def test_without_a_lookup_nothing_is_a_near_copy() -> None:
    assert not NearCopies(None, 0.0).of({"right"})("right")


def test_a_sample_lets_the_stream_through_and_keeps_each_passage_with_the_same_chance() -> None:
    stream = [Passage(str(i), "", "") for i in range(20)]
    kept: dict[str, int] = dict.fromkeys((p.id for p in stream), 0)
    for seed in range(2000):
        sample = Sample(5, seed)
        assert list(sample.watching(stream)) == stream
        assert len(set(sample.ids)) == 5
        for passage in sample.ids:
            kept[passage] += 1
    # 500 are expected of each; five standard deviations are 97.
    assert all(403 < times < 597 for times in kept.values())


def test_a_small_stream_is_kept_whole() -> None:
    sample = Sample(50, 1)
    list(sample.watching(PASSAGES))
    assert sample.ids == ["right", "twin", "other", "echo"]
