from __future__ import annotations

import dataclasses

import pytest

from llm_retriever.evaluation.significance import Comparison
from llm_retriever.evaluation.verdict import daggers, evidence, headline, meaning, p_value, summary_markdown


def compared(difference: float, *, t: float = 0.5, r: float = 0.5, baseline: str = "BM25", n: int = 50) -> dict:
    interval = None if n == 1 else (difference - 0.02, difference + 0.02)
    comparison = Comparison(baseline, "ndcg@10", n, difference, interval, 1, 2, 3, t, t, r)
    return dataclasses.asdict(comparison) | {"verdict": comparison.verdict}


def split(*comparisons: dict) -> dict:
    systems = {"retriever": {"ndcg@10": 0.5, "mrr@10": 0.7}, "BM25": {"ndcg@10": 0.6, "mrr@10": 0.4}}
    return {"queries": 50, "systems": systems, "comparisons": list(comparisons), "notes": ["A note."]}


@pytest.mark.parametrize(
    ("comparison", "sentence"),
    [
        (compared(0.1, t=0.01, r=0.01), "On test, the retriever is significantly better than BM25."),
        (compared(-0.1, t=0.01, r=0.01), "On test, BM25 is significantly better than the retriever."),
        (compared(0.1), "On test, there is no significant difference between the retriever and BM25."),
        (
            compared(-0.1, t=0.04, r=0.06),
            "On test, BM25 is ahead of the retriever, but only one of two tests finds the difference significant.",
        ),
        (compared(0.0), "On test, the retriever and BM25 score the same."),
        (compared(0.4, n=1), "On test, the retriever is ahead of BM25, but a single query proves nothing."),
        (
            compared(0.1, t=0.01, r=0.01, baseline="backbone"),
            "On test, the retriever is significantly better than the un-tuned backbone.",
        ),
    ],
)
def test_the_headline_says_who_is_ahead_and_whether_it_is_certain(comparison, sentence):
    assert headline("test", split(comparison), comparison) == sentence


def test_the_evidence_gives_both_values_the_difference_its_interval_and_both_tests():
    told = evidence(split(), compared(-0.1, t=0.0004, r=0.02)).replace("\N{NO-BREAK SPACE}", " ")
    assert told == (
        "nDCG@10 0.500 against 0.600 over 50 queries, difference −0.100; 95 % interval −0.120 to −0.080; "
        "paired t-test p < 0.001 (Hommel-corrected); randomisation test p = 0.020."
    )


def test_a_single_query_has_no_interval():
    told = evidence(split(), compared(0.4, n=1))
    assert "interval" not in told
    assert "over 1 query," in told


def test_a_small_p_is_never_shown_as_zero():
    assert p_value(0.0) == p_value(0.0009) == "<\N{NO-BREAK SPACE}0.001"
    assert p_value(0.0123) == "0.012"


def test_daggers_name_the_tests_that_find_a_difference():
    found = split(compared(0.1, t=0.04, r=0.06), compared(0.1, t=0.04, r=0.04, baseline="backbone"))
    assert [daggers(found, system, "ndcg@10") for system in ("retriever", "BM25", "backbone")] == ["", "†", "†‡"]
    assert daggers(found, "BM25", "mrr@10") == ""


def test_the_summary_has_a_sentence_and_a_table_a_split_with_the_best_in_bold():
    evaluation = {
        "measures": ["ndcg@10", "mrr@10"],
        "primary_metric": "ndcg@10",
        "splits": {"test": split(compared(-0.1, t=0.01, r=0.01))},
        "notes": ["Something was left out."],
    }
    lines = summary_markdown(evaluation).splitlines()
    assert "## test: 50 queries" in lines
    assert lines[4].startswith("**On test, BM25 is significantly better than the retriever.** nDCG@10 0.500")
    assert "| system | nDCG@10 | MRR@10 |" in lines
    assert "| retriever | 0.500 | **0.700** |" in lines
    assert "| BM25 | **0.600**†‡ | 0.400 |" in lines
    assert "- A note." in lines
    assert lines[-1] == "- Something was left out."


@pytest.mark.parametrize("metric", ["mrr@10", "ndcg@5", "recall@100", "map"])
def test_every_metric_is_explained(metric):
    assert meaning(metric).endswith(".")
