"""Near-duplicates are found without comparing every pair."""

from __future__ import annotations

import random

from llm_retriever.data.sources.near_duplicates import NearDuplicates, Resembling


def words(draw: random.Random, number: int) -> list[str]:
    return [f"w{draw.randrange(5000)}" for _ in range(number)]


def test_letter_case_and_punctuation_play_no_part() -> None:
    seen = NearDuplicates(shingle=3, similarity=0.5)
    assert seen.adds("Open the file, then read it.")
    assert not seen.adds("open the FILE then read it")


def test_texts_that_share_most_shingles_are_found_and_others_are_not() -> None:
    draw = random.Random(1)
    seen = NearDuplicates(shingle=3, similarity=0.5)
    originals = [words(draw, 60) for _ in range(200)]
    assert all(seen.adds(" ".join(text)) for text in originals)
    changed = [[*text[:30], "new", *text[31:]] for text in originals]
    found = sum(not seen.adds(" ".join(text)) for text in changed)
    assert found >= 198
    assert all(seen.adds(" ".join(words(draw, 60))) for _ in range(200))


def test_word_order_counts_only_in_longer_shingles() -> None:
    for shingle, is_new in ((1, False), (3, True)):
        seen = NearDuplicates(shingle=shingle, similarity=0.75)
        seen.adds("the index of the smallest value in a row")
        assert seen.adds("the smallest value of a row in the index") is is_new


def test_an_empty_text_is_a_text_like_others() -> None:
    seen = NearDuplicates(shingle=1, similarity=0.75)
    assert seen.adds("")
    assert not seen.adds("…")


def test_resembling_texts_are_those_of_enough_jaccard_similarity() -> None:
    draw = random.Random(2)

    def similarity(one: str, other: str) -> float:
        sets = [set(zip(w, w[1:], w[2:], strict=False)) for w in (one.split(), other.split())]
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    answers = []
    for _ in range(300):
        # Repeated words make repeated shingles; some texts are longer than the known one.
        text = [f"w{draw.randrange(8)}" for _ in range(draw.randrange(3, 30))]
        other = [*text[: draw.randrange(len(text) + 1)], *(f"w{draw.randrange(8)}" for _ in range(3))]
        for limit in (0.3, 0.6, 0.9, 1.0):
            expected = similarity(" ".join(text), " ".join(other)) >= limit
            known = Resembling(["nothing like it", " ".join(text)], shingle=3, similarity=limit)
            assert (" ".join(other).upper() in known) is expected
            answers.append(expected)
    assert 200 < sum(answers) < 1000


def test_a_text_shorter_than_a_shingle_resembles_itself_alone() -> None:
    known = Resembling(["Too short"], shingle=3, similarity=0.9)
    assert "too short!" in known
    assert "too" not in known
    assert "" not in known
