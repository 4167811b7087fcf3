from __future__ import annotations

import math
import random
import struct

import pytest

from llm_retriever.errors import InputError
from llm_retriever.evaluation.splits import chosen_measures
from llm_retriever.metrics.measures import PRESETS, mean_of_systems, means, parse_measures, score_queries
from llm_retriever.settings import EvaluationSettings


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


@pytest.mark.parametrize(
    "name",
    [
        *("f1@10", "ndcg", "ndcg@0", "ndcg@-1", "ndcg@ten", "map@10x", "@10", "recall@1.5"),
        *("recall(rel=2)", "recall(2)@5", "rprec@10", "recall@10(rel=2)", "ndcg(rel=2)@10", "recall(rel=0)@10"),
    ],
)
def test_an_unknown_metric_is_refused_by_name(name):
    with pytest.raises(InputError, match=r'field "measures": .* is no metric.*; use mrr@K, ndcg@K, recall@K'):
        parse_measures(f"mrr@10,{name}")


def test_no_metric_at_all_is_refused():
    with pytest.raises(InputError, match="names no metric"):
        parse_measures(" , ")


def ranked(run):
    """trec_eval's order: score as float32 descending, then passage id descending."""
    by_score = {passage: struct.unpack("f", struct.pack("f", score))[0] for passage, score in run.items()}
    return sorted(by_score, key=lambda passage: (by_score[passage], passage), reverse=True)


def by_hand(spelling, grades, run, level):
    """The definitions as trec_eval's manual has them, written down once more."""
    kind, _, cutoff = spelling.partition("@")
    k = int(cutoff or 10**9)
    gains = [max(grades.get(passage, 0), 0) for passage in ranked(run)]
    hits = [gain >= level for gain in gains]
    relevant = sum(grade >= level for grade in grades.values())
    if kind == "ndcg":
        ideal = sorted(grades.values(), reverse=True)[:k]
        discounted = [sum(g / math.log2(i + 2) for i, g in enumerate(row)) for row in (gains[:k], ideal)]
        return discounted[0] / discounted[1] if discounted[1] else 0.0
    if kind == "mrr":
        return next((1 / rank for rank, hit in enumerate(hits[:k], 1) if hit), 0.0)
    if kind == "map":
        precisions = [sum(hits[:rank]) / rank for rank, hit in enumerate(hits[:k], 1) if hit]
        return sum(precisions) / relevant if relevant else 0.0
    counts = {
        "recall": (sum(hits[:k]), relevant),
        "precision": (sum(hits[:k]), k),
        "success": (any(hits[:k]), 1),
        "rprec": (sum(hits[:relevant]), relevant),
    }
    return counts[kind][0] / counts[kind][1] if counts[kind][1] else 0.0


SPELLINGS = [
    "mrr@10",
    "mrr@100",
    "ndcg@10",
    "recall@5",
    "recall@1000",
    "precision@10",
    "success@5",
    "map",
    "map@20",
    "rprec",
]


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_all_metrics_equal_their_definitions_on_ties_gaps_and_grades(seed, level):
    draw = random.Random(seed)
    qrels, run = {}, {}
    for query in range(40):
        judged = draw.sample(range(60), 12)
        qrels[f"q{query}"] = {f"d{passage}": draw.choice([0, 0, 1, 2, 3]) for passage in judged}
        if query % 9:  # every ninth query returns nothing
            found = draw.sample(range(60), draw.randint(1, 50))
            run[f"q{query}"] = {f"d{passage}": draw.choice([1.0, 1.5, 1.5 + 1e-9, 2.0]) for passage in found}
    values = score_queries(parse_measures(",".join(SPELLINGS)), qrels, run, relevance_level=level)
    for spelling in SPELLINGS:
        expected = {query: by_hand(spelling, qrels[query], run.get(query, {}), level) for query in qrels}
        assert values[spelling] == pytest.approx(expected, abs=1e-9), spelling
        assert round(means(values)[spelling], 4) == round(sum(expected.values()) / 40, 4)


def test_a_worked_example_of_trec_deep_learning_has_these_values_at_both_levels():
    # Grades 3, 2, 1, 1, 0; ranked x(-), b(2), c(1), a(3), with d(1) missing.
    qrels = {"q": {"a": 3, "b": 2, "c": 1, "d": 1, "e": 0}, "nothing": {"a": 2}}
    run = {"q": ranking("x", "b", "c", "a")}
    measures = parse_measures("trec-dl,mrr(rel=2)@10,precision(rel=2)@4")
    values = {name: round(scores["q"], 4) for name, scores in score_queries(measures, qrels, run).items()}
    assert values == {
        "ndcg@10": 0.5881,  # (2/1.5850 + 1/2 + 3/2.3219) / (3 + 2/1.5850 + 1/2 + 1/2.3219)
        "map(rel=2)": 0.5,  # (1/2 + 2/4) / 2
        "recall(rel=2)@1000": 1.0,
        "recall(rel=1)@1000": 0.75,
        "mrr(rel=2)@10": 0.5,
        "precision(rel=2)@4": 0.5,
    }
    assert round(means(score_queries(measures, qrels, run))["map(rel=2)"], 4) == 0.25


def test_a_level_of_a_measure_beats_that_of_the_evaluation():
    qrels, run = {"q": {"a": 1, "b": 2}}, {"q": ranking("x", "b")}
    assert score("recall(rel=1)@10", qrels, run, level=2)["q"] == pytest.approx(1 / 2)
    assert score("recall(rel=2)@10", qrels, run, level=1)["q"] == pytest.approx(1.0)


def test_levels_above_the_highest_grade_are_lowered_to_it_on_demand():
    qrels, run = {"q": {"a": 1}}, {"q": ranking("a")}
    (measure,) = parse_measures("recall(rel=2)@10")
    assert score_queries([measure], qrels, run)["recall(rel=2)@10"]["q"] == 0.0
    assert score_queries([measure], qrels, run, highest_level=1)["recall(rel=2)@10"]["q"] == 1.0


def test_measures_with_a_level_have_names_for_settings_people_and_kubeflow():
    (measure,) = parse_measures("R(rel=2)@1000")
    assert (measure.name, measure.label, measure.key) == (
        "recall(rel=2)@1000",
        "Recall@1000 (grade ≥ 2)",
        "recall_rel_2_at_1000",
    )
    assert measure.meaning == "share of the relevant passages that are among the first 1000. Relevant from grade 2."
    assert [m.name for m in parse_measures("RR@10,AP,P@5")] == ["mrr@10", "map", "precision@5"]


@pytest.mark.parametrize("spelling", [*SPELLINGS, "map(rel=2)"])
def test_every_metric_says_what_it_means(spelling):
    (measure,) = parse_measures(spelling)
    assert parse_measures(measure.name) == [measure]
    assert measure.meaning.endswith(".")
    assert "{" not in measure.meaning
    assert (str(measure.cutoff) in measure.meaning) == bool(measure.cutoff)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_benchmark_stands_for_its_measures_beside_others(preset):
    names = [m.name for m in parse_measures(f"{preset},mrr@10")]
    assert names == list(dict.fromkeys([*PRESETS[preset].split(","), "mrr@10"]))


def test_the_mean_over_collections_is_unweighted_and_leaves_out_what_was_not_measured_everywhere():
    one, two = {"a": {"map": 0.2}, "b": {"map": 1.0}}, {"a": {"map": 0.6}}
    assert mean_of_systems([one, two]) == {"a": {"map": pytest.approx(0.4)}}


def test_a_measure_deeper_than_the_search_is_lowered_and_noted() -> None:
    measures, primary, notes = chosen_measures(EvaluationSettings(depth=100))
    assert [measure.name for measure in measures] == ["mrr@10", "ndcg@10", "recall@100"]
    assert primary.name == "ndcg@10"
    assert notes == ["Recall@1000 was lowered to Recall@100: 100 passages were searched per query."]
    same, _, nothing = chosen_measures(EvaluationSettings(depth=1000))
    assert ([measure.name for measure in same][-1], nothing) == ("recall@1000", [])


def test_a_measure_that_decides_is_not_lowered() -> None:
    with pytest.raises(
        InputError, match=r"ndcg@10 needs more than 5 passages per query; search 10, or decide by another"
    ):
        chosen_measures(EvaluationSettings(depth=5))
