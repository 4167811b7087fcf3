from __future__ import annotations

import pytest

from llm_retriever.reporting.costs_table import efficiency_rows, hours, large, size_as_text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (15_200_000, "15.2 MB"), (145e9, "145.0 GB"), (2e12, "2.0 TB"), (999_970, "1.0 MB")],
)
def test_sizes_are_shown_in_units_that_people_read(number, text):
    assert size_as_text(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (111_040, "111,040"),
        (6_900_000, "6.9 million"),
        (6.74e9, "6.74 billion"),
        (999.6e6, "1 billion"),
        (1.64e18, "1.6 · 10¹⁸"),
    ],
)
def test_large_numbers_are_shown_in_words_or_powers(number, text):
    assert large(number) == text


@pytest.mark.parametrize(("number", "text"), [(0.01, "36s"), (2.25, "2h15m"), (184.4, "184 h")])
def test_hours_of_processes_are_a_duration_until_there_are_many(number, text):
    assert hours(number) == text


def test_what_nobody_took_down_is_left_out_and_no_row_is_empty():
    told = {"efficiency": {"training": [{"stage": "ql", "seconds": 65.0}], "index_bytes": 2000}, "costs": {}}
    assert efficiency_rows(told) == [("training: ql", "1m05s"), ("size of the index", "2.0 kB")]
    assert efficiency_rows({}) == []


def test_baselines_that_were_encoded_and_re_ranking_have_rows_of_their_own():
    told = {
        "costs": {"untuned_backbone_seconds": 9.0, "encoder_seconds": {"contriever": 61.0}},
        "rerank": {"seconds": 30.0, "pairs": 7_000_000, "tokens": 12, "from": "BM25"},
    }
    assert efficiency_rows(told) == [
        ("evaluating the un-tuned backbone", "9s"),
        ("evaluating contriever", "1m01s"),
        ("re-ranking", "30s, 7,000,000 pairs of query and passage, 12 tokens"),
    ]
