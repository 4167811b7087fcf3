from __future__ import annotations

import numpy as np
import pytest

from llm_retriever.metrics.fusion import Fusion, Ranked, min_max, united

DENSE = Ranked.of(["a", "b", "c"], [3.0, 2.0, 1.0])
LEXICAL = Ranked.of(["c", "d"], [20.0, 10.0])
EMPTY = Ranked.of((), ())


def fused(fusion: Fusion, dense: Ranked = DENSE, lexical: Ranked = LEXICAL, depth: int = 10) -> dict[str, float]:
    return fusion.best(united(dense, lexical), depth)


def test_stretched_scores_are_mixed_and_what_a_system_lacks_counts_as_0() -> None:
    found = fused(Fusion("convex", 0.3))
    assert found == pytest.approx({"c": 0.7, "a": 0.3, "b": 0.15, "d": 0.0})
    assert list(found) == ["c", "a", "b", "d"]


def test_reciprocal_ranks_are_summed() -> None:
    expected = {"c": 1 / 63 + 1 / 61, "a": 1 / 61, "b": 1 / 62, "d": 1 / 62}
    found = fused(Fusion("rrf"))
    assert found == pytest.approx(expected)
    assert list(found) == ["c", "a", "d", "b"]


def test_equal_scores_stand_by_descending_id_also_at_the_cut() -> None:
    tied = Ranked.of(["b", "a", "é", "10", "9"], [1.0] * 5)
    assert list(fused(Fusion("convex", 1.0), tied, EMPTY, 3)) == ["é", "b", "a"]
    assert list(fused(Fusion("convex", 1.0), tied, EMPTY, 5)) == ["é", "b", "a", "9", "10"]


def test_scores_are_rounded_before_they_are_ranked() -> None:
    near = Ranked.of(["a", "b", "z"], np.array([1.0, 1.0 - 2**-24, 0.0], np.float32))
    thirds = fused(Fusion("convex", 1 / 3), near, EMPTY)
    assert len(set(thirds.values())) == len({np.float32(score) for score in thirds.values()})


def test_where_one_system_returns_nothing_the_other_ranks() -> None:
    assert list(fused(Fusion(), DENSE, EMPTY)) == ["a", "b", "c"]
    assert list(fused(Fusion(), EMPTY, LEXICAL)) == ["c", "d"]
    assert fused(Fusion(), EMPTY, EMPTY) == {}


def test_the_only_passage_of_a_system_is_its_best() -> None:
    assert min_max(np.array([7.0], np.float32)).tolist() == [1.0]
    assert list(fused(Fusion("convex", 0.4), DENSE, Ranked.of(["x"], [0.1]))) == ["x", "a", "b", "c"]


def test_a_cut_ranking_is_the_beginning_of_the_whole() -> None:
    random = np.random.default_rng(0)
    sides = []
    for seed in range(2):
        ids = random.permutation(3000)[:1000]
        scores = np.sort(random.integers(0, 50, 1000))[::-1] + seed
        sides.append(Ranked.of(map(str, ids), scores))
    whole = fused(Fusion("convex", 0.3), *sides, depth=2000)
    assert list(whole.items())[:10] == list(fused(Fusion("convex", 0.3), *sides, depth=10).items())
    ordered = sorted(whole.items(), key=lambda item: (item[1], item[0]), reverse=True)
    assert list(whole.items()) == ordered
