from __future__ import annotations

from llm_retriever.collection import Passage
from llm_retriever.mining.twins import Twins, text_key

PASSAGES = [
    Passage("right", "A title", "Glaciers move  slowly."),
    Passage("twin", "Another title", "glaciers MOVE\nslowly."),
    Passage("other", "A title", "Glaciers melt."),
    Passage("echo", "", "do glaciers move?"),
]


def test_case_white_space_and_title_do_not_tell_texts_apart() -> None:
    twins = Twins(PASSAGES, {"right"}, [])
    assert twins.key("twin") == twins.key("right") == text_key("Glaciers move slowly.")


def test_other_texts_are_not_kept() -> None:
    assert Twins(PASSAGES, {"right"}, []).key("other") is None
    assert Twins(PASSAGES, {"right"}, []).key("echo") is None
    assert Twins(PASSAGES, {"right"}, []).key("unknown") is None


def test_a_passage_that_repeats_a_query_is_known() -> None:
    twins = Twins(PASSAGES, {"right"}, ["Do glaciers move?"])
    assert twins.key("echo") == text_key("Do glaciers move?")


def test_there_may_be_no_positives_and_no_passages() -> None:
    assert Twins(PASSAGES, set(), []).key("right") is None
    assert Twins([], {"right"}, ["q"]).key("right") is None
