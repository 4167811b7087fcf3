from __future__ import annotations

import dataclasses

import pytest

from llm_retriever.metrics.conventions import p_value
from llm_retriever.metrics.significance import Comparison
from llm_retriever.reporting.verdict import (
    against_production,
    daggers,
    evidence,
    findings,
    headline,
    listed,
    meaning,
    overview,
    summary_markdown,
    zero_shot,
)


def compared(difference: float, *, t: float = 0.5, r: float = 0.5, baseline: str = "BM25", n: int = 50) -> dict:
    interval = None if n == 1 else (difference - 0.02, difference + 0.02)
    comparison = Comparison(
        baseline, "ndcg@10", n, difference, difference / 0.6, 0.3, interval, 1, 2, 3, 2 / 6, t, t, r
    )
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
        (
            compared(-0.1, t=0.01, r=0.01, baseline="production"),
            "On test, the version in production is significantly better than the retriever.",
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


def test_the_comparison_with_production_is_found_where_there_is_one():
    wanted = compared(0.1, baseline="production")
    assert against_production(split(compared(0.1), wanted, compared(0.1, baseline="backbone"))) == wanted
    assert against_production(split(compared(0.1))) is None


def test_of_many_systems_the_best_is_named_and_where_the_retriever_stands():
    found = split()
    assert overview("test", found, "mrr@10") == "On test, the retriever has the highest MRR@10 of 2 systems: 0.700."
    assert overview("test", found, "ndcg@10") == (
        "On test, BM25 has the highest nDCG@10 of 2 systems: 0.600; the retriever has 0.500."
    )


def test_findings_gather_the_other_systems_by_outcome():
    found = split(
        compared(0.1, t=0.01, r=0.01, baseline="backbone"),
        compared(0.1, t=0.01, r=0.01, baseline="BM25"),
        compared(-0.1, t=0.01, r=0.01, baseline="BM25+QL"),
        compared(0.1, t=0.04, r=0.06, baseline="Echo"),
        compared(0.0, baseline="un-tuned backbone of Echo"),
    )
    assert findings(found, "retriever") == [
        "The retriever is significantly better than the un-tuned backbone and BM25.",
        "The retriever is significantly worse than BM25+QL.",
        "Only one of two tests tells the retriever from Echo.",
        "There is no significant difference between the retriever and the un-tuned backbone of Echo.",
    ]
    assert findings(found, "LLM-QL")[1] == "LLM-QL is significantly worse than BM25+QL."


def test_names_are_listed_as_people_do():
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert listed(["a", "b"], "or") == "a or b"


def test_the_zero_shot_sentences_give_the_means_and_count_the_significant_differences():
    content = {
        "zero_shot": {
            "collections": {"scifact": {}, "cqadupstack": {}},
            "mean": {"retriever": {"ndcg@10": 0.4321}, "BM25": {"ndcg@10": 0.5}},
        },
        "splits": {
            "test": split(compared(0.1, t=0.01, r=0.01)),
            "scifact/test": split(compared(0.1, t=0.01, r=0.01)) | {"zero_shot": "scifact"},
            "cqadupstack/android": split(compared(-0.1, t=0.01, r=0.01)) | {"zero_shot": "cqadupstack"},
            "cqadupstack/unix": split(compared(-0.1)) | {"zero_shot": "cqadupstack"},
        },
    }
    assert zero_shot(content, "ndcg@10") == [
        "nDCG@10 of the retriever on 2 zero-shot collections: 0.432 on average; BM25 0.500.",
        "Against BM25, the retriever is significantly better on 1 and worse on 1 of 3 query sets.",
    ]
    assert zero_shot({"splits": content["splits"]}, "ndcg@10") == []
