from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from llm_retriever.metrics.significance import (
    compare,
    effect_size,
    hommel,
    interval,
    paired_t_test,
    randomisation_test,
    wins_and_losses,
)


def as_scores(values):
    return {f"q{i}": float(value) for i, value in enumerate(values)}


def test_the_paired_t_test_is_the_textbook_formula():
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.2])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(5))
    assert paired_t_test(differences) == pytest.approx(2 * stats.t.sf(t, 4))


def test_the_interval_excludes_zero_exactly_when_the_t_test_is_below_five_percent():
    random = np.random.default_rng(1)
    for shift in np.linspace(0, 0.3, 40):
        differences = random.normal(shift, 0.4, 30)
        low, high = interval(differences)
        assert (low > 0 or high < 0) == (paired_t_test(differences) < 0.05)


def test_hommel_corrects_a_worked_example():
    # p sorted: .01, .02, .03. Hommel's bound for three hypotheses at these values is .03 for each.
    assert hommel([0.02, 0.01, 0.03]) == pytest.approx([0.03, 0.03, 0.03])
    assert hommel([0.04]) == [0.04]
    assert hommel([0.01, 0.9]) == pytest.approx([0.02, 0.9])
    assert hommel([]) == []


def test_few_queries_are_randomised_exactly():
    differences = np.array([0.5, 0.25, -0.125, 0.0, 0.0625])
    observed = abs(differences.sum())
    patterns = list(itertools.product([1, -1], repeat=5))
    reached = sum(abs(np.dot(pattern, differences)) >= observed for pattern in patterns)
    assert randomisation_test(differences) == pytest.approx(reached / len(patterns))


def test_twelve_equal_wins_have_the_smallest_p_that_twelve_queries_allow():
    assert randomisation_test(np.full(12, 0.1)) == pytest.approx(2 / 2**12)


def test_many_queries_are_drawn_and_agree_with_the_exact_answer():
    # 100 queries of equal difference ±1 with 62 wins: the sum is 24, and the exact p comes from the binomial.
    differences = np.array([1.0] * 62 + [-1.0] * 38)
    exact = 2 * stats.binom.sf(61, 100, 0.5)
    assert randomisation_test(differences) == pytest.approx(exact, abs=0.002)


def test_a_number_of_queries_that_eight_does_not_divide_is_drawn_completely():
    differences = np.array([1.0] * 15 + [-1.0] * 6)
    assert randomisation_test(differences) == pytest.approx(2 * stats.binom.sf(14, 21, 0.5), abs=0.003)


def test_the_drawn_p_is_never_zero_and_the_same_every_time():
    differences = np.full(50, 0.2)
    assert randomisation_test(differences) == 1 / 100_001
    noisy = np.random.default_rng(0).normal(0.05, 0.3, 60)
    assert randomisation_test(noisy) == randomisation_test(noisy)


def test_the_randomisation_of_seven_thousand_queries_agrees_with_the_t_test():
    differences = np.random.default_rng(0).normal(0.0, 0.3, 7000)
    assert randomisation_test(differences) == pytest.approx(paired_t_test(differences), abs=0.01)


@pytest.mark.parametrize("values", [[0.4], [0.4, 0.4, 0.4]])
def test_identical_runs_have_p_one(values):
    (comparison,) = compare("ndcg@10", as_scores(values), {"BM25": as_scores(values)})
    assert (comparison.t_test, comparison.t_test_hommel, comparison.randomisation) == (1.0, 1.0, 1.0)
    assert (comparison.wins, comparison.ties, comparison.losses) == (0, len(values), 0)
    assert comparison.verdict == "not significant"


def test_a_single_query_has_p_one_and_no_interval():
    (comparison,) = compare("ndcg@10", {"q": 1.0}, {"BM25": {"q": 0.0}})
    assert (comparison.t_test, comparison.randomisation, comparison.interval) == (1.0, 1.0, None)
    assert comparison.mean_difference == 1.0


def test_a_constant_difference_is_no_nan():
    (comparison,) = compare("ndcg@10", as_scores([1, 1, 1, 1]), {"BM25": as_scores([0.5] * 4)})
    assert comparison.t_test == 0.0
    assert comparison.randomisation == pytest.approx(2 / 2**4)
    assert comparison.interval == (0.5, 0.5)
    assert comparison.verdict == "tests disagree"


def test_the_family_is_all_baselines_of_the_split():
    random = np.random.default_rng(5)
    system = random.random(40)
    worse = {name: as_scores(system - random.normal(0.08, 0.2, 40)) for name in ("BM25", "backbone", "other")}
    together = compare("ndcg@10", as_scores(system), worse)
    assert [c.t_test_hommel for c in together] == pytest.approx(hommel([c.t_test for c in together]))
    alone = compare("ndcg@10", as_scores(system), {"BM25": worse["BM25"]})[0]
    assert alone.t_test == together[0].t_test
    assert alone.t_test_hommel == alone.t_test < together[0].t_test_hommel


def test_queries_are_paired_by_id_and_not_by_position():
    system, baseline = {"a": 1.0, "b": 0.0}, {"b": 0.0, "a": 1.0}
    assert compare("ndcg@10", system, {"BM25": baseline})[0].ties == 2


def test_other_queries_are_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="same queries"):
        compare("ndcg@10", {"a": 1.0}, {"BM25": {"b": 1.0}})


def test_a_clear_win_is_significant_and_counted():
    system = as_scores([1.0] * 20 + [0.5] * 5 + [0.0] * 2)
    baseline = as_scores([0.2] * 20 + [0.5] * 5 + [0.4] * 2)
    (comparison,) = compare("mrr@10", system, {"BM25": baseline})
    assert comparison.verdict == "significant"
    assert (comparison.wins, comparison.ties, comparison.losses) == (20, 5, 2)
    low, high = comparison.interval
    assert low < comparison.mean_difference < high


def test_the_effect_size_is_the_mean_over_the_standard_deviation_of_the_differences():
    differences = np.array([0.3, -0.1, 0.4, 0.2, 0.2])
    assert effect_size(differences) == pytest.approx(0.2 / math.sqrt(0.14 / 4))
    # t = d_z √n
    assert stats.ttest_1samp(differences, 0.0).statistic == pytest.approx(effect_size(differences) * math.sqrt(5))


def test_the_relative_difference_is_that_to_the_mean_of_the_baseline():
    (comparison,) = compare("ndcg@10", as_scores([0.5, 0.7]), {"BM25": as_scores([0.4, 0.4])})
    assert comparison.relative_difference == pytest.approx(0.2 / 0.4)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([1.0], [0.0]),
        ([0.0], [0.0]),
        ([0.4] * 3, [0.4] * 3),
        ([1.0] * 4, [0.5] * 4),
        ([0.0] * 3, [0.0] * 3),
        ([0.3] * 3, [0.0] * 3),
    ],
)
def test_no_figure_is_infinite_or_no_number_in_the_corner_cases(ours, theirs):
    (comparison,) = compare("mrr@10", as_scores(ours), {"BM25": as_scores(theirs)})
    numbers = [value for value in dataclasses.asdict(comparison).values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in [*numbers, *(comparison.interval or ())])
    assert comparison.effect_size is None
    assert (comparison.relative_difference is None) == (not any(theirs))


def test_ties_are_counted_as_a_share():
    (comparison,) = compare("mrr@10", as_scores([1, 0, 0, 0.5]), {"BM25": as_scores([0, 0, 0, 1])})
    assert (comparison.ties, comparison.tie_share) == (2, 0.5)


def test_wins_and_losses_are_listed_with_the_largest_difference_first_and_ids_in_order():
    ours = {"a": 1.0, "b": 0.5, "c": 0.0, "d": 0.25, "e": 0.75}
    theirs = {"a": 0.5, "b": 0.5, "c": 1.0, "d": 0.5, "e": 0.25}
    assert wins_and_losses(ours, theirs) == {"won": ["a", "e"], "lost": ["c", "d"]}
