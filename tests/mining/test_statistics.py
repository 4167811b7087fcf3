from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from llm_retriever.mining.picture import page
from llm_retriever.mining.selection import Rule, select
from llm_retriever.mining.statistics import Statistics
from llm_retriever.mining.summary import markdown, rank_bounds

BM25 = [("b1", 9.0), ("both", 8.0), ("right", 7.0), ("tie", 6.0), ("b5", 5.0)]
DENSE = [("both", 0.9), ("d2", 0.8), ("d3", 0.7), ("tie", 0.6), ("d5", 0.5)]
RECIPE: dict[str, Any] = {
    "sources": {
        "bm25": {"k1": 0.9, "b": 0.4, "depth": 5, "analyzer": "English"},
        "dense": {"encoder": "<b>LLM-QL</b>", "depth": 5, "dtype": "fp32"},
    },
    "quotas": {"bm25": 2},
    "negatives": 9,
    "rank_floor": 0,
    "score_ceiling": 0.95,
    "near_duplicate": 0.9,
    "random_top_up": True,
    "seed": 17,
}


@pytest.fixture
def statistics() -> Statistics:
    """One query with two sources, of which the encoder does not find the positive; one with nothing; one unjudged."""
    counted = Statistics(["bm25", "dense"], depth=5, negatives=9)
    counted.count_queries(3, without_positives=1)
    rankings = {"bm25": BM25, "dense": DENSE}
    counted.add(select("q", rankings, {"right"}, Rule(9), spare=["r1", "r2"]), rankings)
    empty = {"bm25": [], "dense": []}
    counted.add(select("empty", empty, {"right"}, Rule(9)), empty)
    return counted


def test_every_negative_is_counted_for_one_source(statistics: Statistics) -> None:
    # Drawn are b1, both, tie, b5 and d2, d3, d5, and both random ones; "both" is better in the encoder.
    assert statistics.counts == {
        "queries": 3,
        "examples": 1,
        "negatives": 9,
        "found_by_several": 2,
        "random": 2,
        "near_duplicates": 0,
        "fewer_negatives_than_wanted": 0,
        "dropped": {"no_positives": 1, "nothing_found": 1, "nothing_left": 0},
        "sources": {
            "bm25": {
                "candidates": 5,
                "removed": {"positive": 1, "same_text": 0, "rank_floor": 0, "score_ceiling": 0, "other_source": 0},
                "positive_retrieved": 1,
                "negatives": 3,
                "above_positive": 1,
                "positive_not_retrieved": 0,
            },
            "dense": {
                "candidates": 5,
                "removed": {"positive": 0, "same_text": 0, "rank_floor": 0, "score_ceiling": 0, "other_source": 0},
                "positive_retrieved": 0,
                "negatives": 4,
                "above_positive": 0,
                "positive_not_retrieved": 4,
            },
        },
    }


def test_likely_false_negatives_are_told_by_rank(statistics: Statistics) -> None:
    bounds = rank_bounds(5)
    assert bounds == [0, 1, 2, 3, 4, 5]
    bm25, dense = statistics.sources.values()
    assert bm25.negatives_by_rank(bounds) == [1, 0, 0, 1, 1]
    assert bm25.above_by_rank(bounds) == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert dense.above_by_rank(bounds) == [1.0, 1.0, 1.0, 0.0, 1.0]


def test_the_overlap_of_two_sources_is_that_of_their_top_ranks(statistics: Statistics) -> None:
    # "both" stands within the top 2 of either, "tie" within the top 4.
    assert statistics.borders == [1, 5]
    assert statistics.overlap() == [0.0, 2 / 5]


def test_a_positive_counts_from_its_rank_on(statistics: Statistics) -> None:
    assert statistics.sources["bm25"].retrieved_within([1, 2, 3, 5]) == [0.0, 0.0, 0.5, 0.5]
    assert statistics.sources["dense"].retrieved_within([5]) == [0.0]


def test_the_text_tells_the_numbers(statistics: Statistics) -> None:
    text = markdown(statistics, RECIPE)
    assert "1 of 3 training queries got 9 negatives, 9 wanted for each." in text
    assert "| BM25 | 3 | 1 (33.3%) | 0 (0.0%) |" in text
    assert "| dense | 4 | 0 (0.0%) | 4 (100.0%) |" in text
    assert "2 of them were found by both sources" in text
    assert "2 more are random passages" in text
    assert "| share in common | 0.0% | 40.0% |" in text
    assert "after quotas: 2 from BM25" in text
    assert "rank floor: off; score ceiling: 0.95" in text
    assert "| BM25: best positive, where retrieved | 7.00 |" in text
    assert "dense: best positive" not in text


def test_the_grid_is_shown_with_its_best_cell() -> None:
    grid = [{"k1": k1, "b": b, "mrr@10": k1 * b / 2} for k1 in (0.5, 1.0) for b in (0.2, 0.4)]
    tuning = {
        "split": "dev",
        "queries": 7,
        "metric": "mrr@10",
        "best": {"k1": 1.0, "b": 0.4, "mrr@10": 0.2},
        "grid": grid,
    }
    sources = {"bm25": {**RECIPE["sources"]["bm25"], "tuning": tuning}}
    text = markdown(Statistics(["bm25"], 5, 9), {**RECIPE, "sources": sources, "quotas": {}})
    assert "| k1 | b 0.2 | b 0.4 |\n|---|--:|--:|\n| 0.5 | 0.0500 | 0.1000 |\n| 1 | 0.1000 | **0.2000** |" in text
    assert "too good to be compared with" in text


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what could come from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.foreign: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "br"):
            self.open.append(tag)
        self.foreign += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(statistics: Statistics) -> None:
    shown = page(statistics, RECIPE)
    read = Page()
    read.feed(shown)
    assert read.open == []
    assert read.foreign == []
    assert not re.search(r"url\((?!#)", shown)
    assert "@import" not in shown
    assert "1 of 3 training queries got 9 negatives" in read.text
    assert "the top 5 of <b>LLM-QL</b>" in read.text
    # Ranks, likely false negatives and scores of both sources, and the overlap.
    assert shown.count('class="chart"') == 7


def test_a_page_of_nothing_is_a_page() -> None:
    read = Page()
    read.feed(page(Statistics(["bm25"], 5, 9), {**RECIPE, "quotas": {}}))
    assert read.open == []
