from __future__ import annotations

import math

import pytest

from llm_retriever.errors import InputError
from llm_retriever.evaluation.metrics import means, parse_measures, score_queries


def score(spelling, qrels, run, level=1):
    """The one metric's value per query."""
    (measure,) = parse_measures(spelling)
    return score_queries([measure], qrels, run, relevance_level=level)[measure.name]


def ranking(*passages):
    """A ranking in this order."""
    return {passage: float(len(passages) - i) for i, passage in enumerate(passages)}


def test_the_reciprocal_rank_is_that_of_the_first_relevant_passage():
    assert score("mrr@10", {"q": {"b": 1, "c": 1}}, {"q": ranking("a", "b", "c")})["q"] == 1 / 2


@pytest.mark.parametrize(("rank", "value"), [(1, 1.0), (3, 1 / 3), (10, 1 / 10), (11, 0.0)])
def test_the_reciprocal_rank_is_cut_after_rank_k(rank, value):
    passages = [f"p{i}" for i in range(1, 21)]
    assert score("mrr@10", {"q": {f"p{rank}": 1}}, {"q": ranking(*passages)})["q"] == pytest.approx(value, abs=1e-12)


def test_ndcg_takes_the_grade_as_gain_and_discounts_by_log2_of_rank_plus_one():
    qrels = {"q": {"a": 3, "b": 2, "c": 1, "d": 0}}
    # Ranked b, x, a: gains 2, 0, 3. Ideal: 3, 2, 1.
    gained = 2 / math.log2(2) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert score("ndcg@10", qrels, {"q": ranking("b", "x", "a")})["q"] == pytest.approx(gained / ideal)


def test_the_ideal_of_ndcg_at_k_stops_at_rank_k():
    qrels = {"q": {"a": 1, "b": 1, "c": 1}}
    assert score("ndcg@2", qrels, {"q": ranking("a", "b", "x")})["q"] == pytest.approx(1.0)


def test_recall_counts_relevant_passages_up_to_rank_k_among_all_relevant_ones():
    qrels = {"q": {"a": 1, "b": 2, "c": 1, "d": 0}}
    run = {"q": ranking("a", "x", "b", "d", "c")}
    assert score("recall@3", qrels, run)["q"] == pytest.approx(2 / 3)
    assert score("recall@5", qrels, run)["q"] == pytest.approx(1.0)
    assert score("recall@1000", qrels, run)["q"] == pytest.approx(1.0)


def test_average_precision_divides_by_all_relevant_passages_also_those_not_found():
    qrels = {"q": {"a": 1, "b": 1, "lost": 1}}
    assert score("map", qrels, {"q": ranking("a", "x", "b")})["q"] == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_equal_scores_are_ranked_by_passage_id_in_descending_order():
    tied = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert score("mrr@10", {"q": {"c": 1}}, {"q": tied})["q"] == 1.0
    assert score("mrr@10", {"q": {"a": 1}}, {"q": tied})["q"] == pytest.approx(1 / 3)


def test_the_order_of_the_lines_of_a_run_does_not_matter():
    assert score("mrr@10", {"q": {"a": 1}}, {"q": {"b": 1.0, "a": 2.0}})["q"] == 1.0


@pytest.mark.parametrize("spelling", ["mrr@10", "ndcg@10", "recall@10", "map"])
def test_a_judged_query_without_results_counts_as_zero(spelling):
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    values = score(spelling, qrels, {"q1": ranking("a"), "q3": {}})
    assert values == {"q1": 1.0, "q2": 0.0, "q3": 0.0}
    assert means({spelling: values})[spelling] == pytest.approx(1 / 3)


def test_a_query_without_judgments_is_ignored():
    assert score("mrr@10", {"q": {"a": 1}}, {"q": ranking("a"), "other": ranking("b")}) == {"q": 1.0}


def test_a_run_without_any_judged_query_scores_zero():
    assert score("ndcg@10", {"q": {"a": 1}}, {"other": ranking("a")}) == {"q": 0.0}


@pytest.mark.parametrize(("spelling", "value"), [("mrr@10", 1 / 3), ("recall@3", 1 / 2), ("map", 1 / 6)])
def test_the_relevance_level_decides_what_binary_metrics_count(spelling, value):
    qrels = {"q": {"a": 1, "b": 2, "c": 3}}
    assert score(spelling, qrels, {"q": ranking("a", "x", "b")}, level=2)["q"] == pytest.approx(value)


def test_the_relevance_level_does_not_touch_graded_metrics():
    qrels, run = {"q": {"a": 1, "b": 2}}, {"q": ranking("a", "b")}
    assert score("ndcg@10", qrels, run, level=2) == score("ndcg@10", qrels, run, level=1)


def test_a_query_with_only_irrelevant_judgments_counts_as_zero():
    assert score("ndcg@10", {"q": {"a": 0}}, {"q": ranking("a")}) == {"q": 0.0}


def test_values_come_in_the_order_of_the_judged_queries():
    qrels = {"q9": {"a": 1}, "q1": {"a": 1}, "q5": {"a": 1}}
    assert list(score("mrr@10", qrels, {q: ranking("a") for q in sorted(qrels)})) == ["q9", "q1", "q5"]


def test_several_measures_with_several_cutoffs_are_computed_together():
    measures = parse_measures("recall@1, recall@2, ndcg@1, ndcg@2, mrr@1, mrr@2, map")
    values = score_queries(measures, {"q": {"b": 1}}, {"q": ranking("a", "b")})
    discounted = 1 / math.log2(3)
    found = {name: scores["q"] for name, scores in values.items()}
    assert found == pytest.approx(
        {"recall@1": 0, "recall@2": 1, "ndcg@1": 0, "ndcg@2": discounted, "mrr@1": 0, "mrr@2": 0.5, "map": 0.5}
    )


def test_names_are_read_without_regard_to_case_and_space_and_kept_once():
    measures = parse_measures(" nDCG@10 ,mrr@10,ndcg@10, MAP,")
    assert [m.name for m in measures] == ["ndcg@10", "mrr@10", "map"]
    assert [m.label for m in measures] == ["nDCG@10", "MRR@10", "MAP"]
    assert [m.key for m in measures] == ["ndcg_at_10", "mrr_at_10", "map"]


@pytest.mark.parametrize("name", ["f1@10", "ndcg", "ndcg@0", "ndcg@-1", "ndcg@ten", "map@10x", "@10", "recall@1.5"])
def test_an_unknown_metric_is_refused_by_name(name):
    with pytest.raises(InputError, match=r'field "measures": .* is no metric; use mrr@K, ndcg@K, recall@K or map'):
        parse_measures(f"mrr@10,{name}")


def test_no_metric_at_all_is_refused():
    with pytest.raises(InputError, match="names no metric"):
        parse_measures(" , ")
