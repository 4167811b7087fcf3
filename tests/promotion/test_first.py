"""The first version: published only where training was worth it and search is better than without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llm_retriever.metrics.significance import compare
from llm_retriever.stores.opening import open_store
from tests.promotion.conftest import Run, in_production

QUERIES = 200


def values(mean: float, seed: int) -> list[float]:
    """Per-query values of about this mean, as nDCG spreads."""
    draws = np.random.default_rng(seed).beta(0.4, 0.4 * (1 - mean) / mean, QUERIES) if mean else np.zeros(QUERIES)
    return [float(value) for value in draws]


def run_of(directory: Path, **systems: Sequence[float]) -> Run:
    """A run whose evaluation has measured these systems, with the comparisons that evaluate makes."""
    per_query = {name: {f"q{i}": value for i, value in enumerate(row)} for name, row in systems.items()}
    run = Run(directory, float(np.mean(systems["retriever"])), queries=QUERIES)
    split = run.content["splits"]["test"]
    split["systems"] = {name: {"ndcg@10": float(np.mean(row))} for name, row in systems.items()}
    for system, key in (("retriever", "comparisons"), ("hybrid", "hybrid_comparisons")):
        others = {name: row for name, row in per_query.items() if name not in (system, "hybrid")}
        if system in per_query:
            split[key] = [dataclasses.asdict(row) for row in compare("ndcg@10", per_query[system], others)]
    run.save()
    return run


BACKBONE, LEXICAL = values(0.02, 1), values(0.43, 2)


def test_a_model_that_learnt_but_loses_to_bm25_is_not_published(uri: str, tmp_path: Path) -> None:
    # What a tiny model from scratch learns in minutes: nDCG@10 .008 against .000 of its backbone and .433 of BM25.
    run = run_of(tmp_path / "run", retriever=values(0.008, 3), backbone=[0.0] * QUERIES, BM25=LEXICAL)
    assert run.promote(uri) == ("", False)
    assert open_store(uri).list() == []
    assert run.decision.startswith("# Not promoted")
    assert "- The retriever is worse than BM25: ndcg@10 -0.4" in run.decision


def test_a_model_that_beats_backbone_and_bm25_is_published_with_these_reasons(uri: str, tmp_path: Path) -> None:
    better = [min(1.0, value + 0.1) for value in LEXICAL]
    run = run_of(tmp_path / "run", retriever=better, backbone=BACKBONE, BM25=LEXICAL)
    published, promoted = run.promote(uri)
    assert promoted
    assert in_production(uri) is not None
    assert "- The retriever is significantly better than its un-tuned backbone: ndcg@10 +0." in run.decision
    assert "- The retriever is significantly better than BM25: ndcg@10 +0." in run.decision
    assert published


def test_hybrid_search_alone_may_be_what_beats_bm25(uri: str, tmp_path: Path) -> None:
    fused = [min(1.0, value + 0.12) for value in LEXICAL]
    run = run_of(tmp_path / "run", retriever=LEXICAL[::-1], backbone=BACKBONE, BM25=LEXICAL, hybrid=fused)
    assert run.promote(uri)[1]
    assert "- The retriever is not significantly better than BM25" in run.decision or "worse than BM25" in run.decision
    assert "- Hybrid search is significantly better than BM25: ndcg@10 +0." in run.decision


def test_a_model_no_better_than_its_backbone_is_not_published(uri: str, tmp_path: Path) -> None:
    fused = [min(1.0, value + 0.12) for value in LEXICAL]
    run = run_of(tmp_path / "run", retriever=fused, backbone=fused[::-1], BM25=LEXICAL, hybrid=fused)
    assert run.promote(uri) == ("", False)
    assert "significantly better than its un-tuned backbone" in run.decision


def test_what_was_not_measured_is_not_asked_for(uri: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", retriever=values(0.3, 5), BM25=values(0.05, 6))
    assert run.promote(uri)[1]
    assert "- The un-tuned backbone was not measured on this split." in run.decision


def test_any_model_may_be_first_where_that_is_asked_for(uri: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", retriever=values(0.01, 3), backbone=BACKBONE, BM25=LEXICAL)
    assert run.promote(uri, first="any")[1]


@pytest.mark.parametrize(("shift", "kept"), [(-0.05, True), (0.05, False)])
def test_a_later_version_is_compared_with_production_alone(uri: str, tmp_path: Path, shift: float, kept: bool) -> None:
    better = [min(1.0, value + 0.1) for value in LEXICAL]
    first, _ = run_of(tmp_path / "first", retriever=better, backbone=BACKBONE, BM25=LEXICAL).promote(uri)
    new = Run(tmp_path / "new", float(np.mean(better)) + shift, seed=2, queries=QUERIES)
    published, promoted = new.promote(uri)
    assert promoted is not kept
    assert (published == first) is kept


def test_a_split_that_something_was_chosen_on_does_not_decide(uri: str, tmp_path: Path) -> None:
    better = [min(1.0, value + 0.1) for value in LEXICAL]
    run = run_of(tmp_path / "run", retriever=better, backbone=BACKBONE, BM25=LEXICAL)
    run.content["splits"] = {"dev": run.content["splits"]["test"], **run.content["splits"]}
    run.content["hybrid"] = {"fusion": "convex", "weight": 0.5, "chosen_on": "dev", "curve": []}
    run.save()
    assert run.promote(uri)[1]
    assert "|  | ndcg@10 on test |" in run.decision
