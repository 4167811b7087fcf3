"""Tests whether two systems differ by more than chance, on the same queries.

The tests are those of the LLM-QL paper: the paired t-test, corrected for several baselines by Hommel's procedure, and
Fisher's randomisation test. The family of the correction is all baselines × one metric × one split.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from llm_retriever.metrics.conventions import ALPHA

DRAWS = 100_000
EXACT_UP_TO = 16  # 2^16 sign patterns are fewer than the draws, and leave nothing to chance
ON_TIES = "the tests rest on the others."
"""How a note ends that says on how many queries two systems of an evaluation are even."""
FAMILY = "all baselines × the primary metric × one split"

Verdict = Literal["significant", "tests disagree", "not significant"]


@dataclass(frozen=True)
class Comparison:
    """The tuned retriever against one baseline on the queries of one split.

    Attributes:
        baseline: Name of the system that is compared with.
        metric: The metric's name.
        queries: Number of queries, n.
        mean_difference: Mean over the queries of retriever − baseline.
        relative_difference: That over the baseline's mean; None where the baseline's mean is 0.
        effect_size: Cohen's d_z, the mean difference over the standard deviation of the differences; None for a single
            query and where all differences are equal.
        interval: Its 95 % confidence interval (Student's t, n − 1 degrees of freedom); None for a single query.
        wins: Queries on which the retriever is better.
        ties: Queries on which both are equal.
        losses: Queries on which the retriever is worse.
        tie_share: ties / queries. MRR@10 has few values, so that most queries are ties; they say nothing on which system
            is better, and the tests rest on the others.
        t_test: Two-sided p of the paired t-test.
        t_test_hommel: The same, corrected for the family.
        randomisation: Two-sided p of Fisher's randomisation test.
    """

    baseline: str
    metric: str
    queries: int
    mean_difference: float
    relative_difference: float | None
    effect_size: float | None
    interval: tuple[float, float] | None
    wins: int
    ties: int
    losses: int
    tie_share: float
    t_test: float
    t_test_hommel: float
    randomisation: float

    @property
    def verdict(self) -> Verdict:
        """Whether both tests (the first one corrected) find p < 0.05, only one of them, or none."""
        agreeing = (self.t_test_hommel < ALPHA) + (self.randomisation < ALPHA)
        return ("not significant", "tests disagree", "significant")[agreeing]  # type: ignore[return-value]

    def as_json(self) -> dict[str, Any]:
        """For `evaluation.json` and `comparison.json`."""
        return dataclasses.asdict(self) | {"verdict": self.verdict}


def compare(metric: str, system: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> list[Comparison]:
    """Compares a system with every baseline.

    Args:
        metric: Name of the metric.
        system: Its value by query id.
        baselines: Values by query id, by name; each has the queries of `system`.

    Raises:
        ValueError: A baseline has other queries, or there is none.
    """
    differences = {name: _differences(system, values) for name, values in baselines.items()}
    t_tests = [paired_t_test(difference) for difference in differences.values()]
    return [
        _comparison(name, metric, difference, math.fsum(baselines[name].values()), t_test, corrected)
        for (name, difference), t_test, corrected in zip(differences.items(), t_tests, hommel(t_tests), strict=True)
    ]


def _comparison(
    name: str, metric: str, difference: np.ndarray, baseline_sum: float, t_test: float, corrected: float
) -> Comparison:
    ties = int((difference == 0).sum())
    return Comparison(
        baseline=name,
        metric=metric,
        queries=len(difference),
        mean_difference=float(difference.mean()),
        relative_difference=float(difference.sum()) / baseline_sum if baseline_sum else None,
        effect_size=effect_size(difference),
        interval=interval(difference),
        wins=int((difference > 0).sum()),
        ties=ties,
        losses=int((difference < 0).sum()),
        tie_share=ties / len(difference),
        t_test=t_test,
        t_test_hommel=corrected,
        randomisation=randomisation_test(difference),
    )


def wins_and_losses(system: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, list[str]]:
    """Ids of the queries that a system wins (`won`) and loses (`lost`) against a baseline, largest difference first."""
    differences = {query: value - baseline[query] for query, value in system.items()}
    ordered = sorted(differences, key=lambda query: (-abs(differences[query]), query))
    return {
        "won": [query for query in ordered if differences[query] > 0],
        "lost": [query for query in ordered if differences[query] < 0],
    }


def _differences(system: Mapping[str, float], baseline: Mapping[str, float]) -> np.ndarray:
    if not system or system.keys() != baseline.keys():
        raise ValueError("the systems were not judged on the same queries")
    return np.array([value - baseline[query] for query, value in system.items()])


def paired_t_test(differences: np.ndarray) -> float:
    """Two-sided p of the paired t-test on per-query differences [n]; 1 for a single query or identical runs."""
    n = len(differences)
    if n < 2 or not differences.any():
        return 1.0
    if not np.ptp(differences):
        return 0.0  # no variance at all: t is infinite
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def effect_size(differences: np.ndarray) -> float | None:
    """Cohen's d_z of per-query differences [n]: mean over standard deviation (n − 1); None where that is 0 or undefined.

    Source: Cohen, *Statistical Power Analysis for the Behavioral Sciences*, 1988, section 2.3.5.
    """
    if len(differences) < 2 or not np.ptp(differences):
        return None
    return float(differences.mean() / differences.std(ddof=1))


def interval(differences: np.ndarray) -> tuple[float, float] | None:
    """95 % confidence interval of the mean of per-query differences [n]; None for a single query."""
    n = len(differences)
    if n < 2:
        return None
    mean, error = differences.mean(), differences.std(ddof=1) / math.sqrt(n)
    half = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) * error
    return float(mean - half), float(mean + half)


def hommel(p_values: Sequence[float]) -> list[float]:
    """Corrects p values by Hommel's procedure; their order stays."""
    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, ALPHA, method="hommel")[1]]


def randomisation_test(differences: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of Fisher's randomisation test: flips the sign of every per-query difference [n] at random.

    The statistic is the absolute mean difference; p = (c + 1) / (draws + 1), c = draws that reach the observed one.
    Up to 16 differences that are not 0, all sign patterns are counted instead and p is exact. Differences of 0 have no
    sign and are left out, which changes nothing.

    Source: Smucker, Allan and Carterette, *A comparison of statistical significance tests for information retrieval
    evaluation*, CIKM 2007.
    """
    signed = differences[differences != 0]
    n = len(signed)
    if n == 0 or len(differences) < 2:
        return 1.0
    observed = abs(signed.sum()) * (1 - 1e-9)  # sums in another order differ in the last digits
    if n <= EXACT_UP_TO:
        return float((np.abs(_signed_sums(signed)) >= observed).mean())
    reached = int((np.abs(_random_sums(signed, draws, seed)) >= observed).sum())
    return (reached + 1) / (draws + 1)


def _signed_sums(values: np.ndarray) -> np.ndarray:
    """Sums of `values` [n] under every pattern of signs [2^n]."""
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _random_sums(values: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Sums of `values` [n] under random signs [draws].

    Eight values at a time: a random byte picks one of their 256 signed sums. Memory grows with the draws only.
    """
    random = np.random.default_rng(seed)
    sums = np.zeros(draws)
    for start in range(0, len(values), 8):
        table = _signed_sums(np.append(values[start : start + 8], np.zeros(8))[:8])
        sums += table[random.integers(0, 256, draws, dtype=np.uint8)]
    return sums
