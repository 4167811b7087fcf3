"""Hybrid search in an evaluation: how its weight is chosen, what is told of it, and that it is left out without BM25."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.evaluation.hybrid import choices
from llm_retriever.evaluation.zero_shot import why_no_bm25
from llm_retriever.indexing.build import build_index
from llm_retriever.metrics.fusion import Fusion, united
from llm_retriever.metrics.measures import means, parse_measures, score_queries
from llm_retriever.metrics.runs import read_ranked, read_run
from llm_retriever.metrics.significance import hommel
from llm_retriever.settings import CorpusSettings, EvaluationSettings, IndexSettings
from tests.evaluation.conftest import write_runs, write_source
from tests.evaluation.test_evaluate import SETTINGS, run


@pytest.fixture(scope="module")
def with_dev(unspoilt_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The inputs of a collection whose split `graded` is called `dev`; not to be changed."""
    directory = tmp_path_factory.mktemp("with-dev")
    source = write_source(directory / "source")
    (source / "qrels" / "graded.tsv").rename(source / "qrels" / "dev.tsv")
    made = unspoilt_inputs | {name: directory / name for name in ("collection", "index", "bm25_runs")}
    preparation.prepare(CorpusSettings(uri=str(source)), made["collection"])
    build_index(made["retriever"], made["collection"], made["index"], IndexSettings(precision="fp32"))
    write_runs(made["bm25_runs"], Collection.open(made["collection"]), ("dev", "test"))
    return made


@pytest.fixture(scope="module")
def evaluated(with_dev: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation with all defaults; not to be changed."""
    directory = tmp_path_factory.mktemp("evaluated")
    return run(with_dev, directory), directory


def fused(directory: Path, split: str, fusion: Fusion) -> dict[str, dict[str, float]]:
    """The runs of an evaluation, fused anew."""
    runs = directory / "evaluation" / "runs" / split
    dense, lexical = (read_ranked(runs / f"{name}.trec") for name in ("retriever", "BM25"))
    return {q: fusion.best(united(dense[q], lexical[q]), SETTINGS.depth) for q in dense}


def test_the_weight_is_the_best_of_the_curve_on_dev(with_dev, evaluated):
    (_, content), directory = evaluated
    told = content["hybrid"]
    assert (told["fusion"], told["chosen_on"], told["metric"]) == ("convex", "dev", "ndcg@10")
    assert [weight for weight, _ in told["curve"]] == [tenth / 10 for tenth in range(11)]
    best = max(value for _, value in told["curve"])
    assert dict(map(tuple, told["curve"]))[told["weight"]] == best
    qrels = Collection.open(with_dev["collection"]).qrels("dev")
    for weight, value in told["curve"]:
        scores = score_queries(parse_measures("ndcg@10"), qrels, fused(directory, "dev", Fusion("convex", weight)))
        assert value == pytest.approx(means(scores)["ndcg@10"])
    assert content["splits"]["dev"]["systems"]["hybrid"]["ndcg@10"] == best
    # Both ends are the systems themselves, as far as their runs reach.
    assert told["curve"][0][1] == pytest.approx(content["splits"]["dev"]["systems"]["BM25"]["ndcg@10"])
    assert told["curve"][-1][1] == pytest.approx(content["splits"]["dev"]["systems"]["retriever"]["ndcg@10"])


def test_the_run_that_is_kept_is_the_fusion_of_the_two_that_are_kept(evaluated):
    (_, content), directory = evaluated
    fusion = Fusion("convex", content["hybrid"]["weight"])
    for split in ("dev", "test"):
        kept = read_run(directory / "evaluation" / "runs" / split / "hybrid.trec")
        expected = fused(directory, split, fusion)
        assert {q: list(ranking) for q, ranking in kept.items()} == {q: list(r) for q, r in expected.items()}
        assert {len(ranking) for ranking in kept.values()} == {SETTINGS.depth}


def test_it_is_a_system_with_a_family_of_tests_of_its_own(evaluated):
    (metrics, content), directory = evaluated
    for split in content["splits"].values():
        assert list(split["systems"]) == list(split["per_query"]) == ["retriever", "hybrid", "BM25", "backbone"]
        assert [c["baseline"] for c in split["comparisons"]] == ["BM25", "backbone"]
        compared = split["hybrid_comparisons"]
        assert [c["baseline"] for c in compared] == ["retriever", "BM25", "backbone"]
        assert [c["t_test_hommel"] for c in compared] == pytest.approx(hommel([c["t_test"] for c in compared]))
        ours, theirs = split["per_query"]["hybrid"], split["per_query"]["retriever"]
        difference = math.fsum(ours[q] - theirs[q] for q in ours) / len(ours)
        assert compared[0]["mean_difference"] == pytest.approx(difference)
    assert metrics["test_ndcg_at_10_hybrid"] == content["splits"]["test"]["systems"]["hybrid"]["ndcg@10"]
    assert "convex combination" in content["systems"]["hybrid"]["description"]
    page, summary = (directory / "report.html").read_text(), (directory / "summary.md").read_text()
    assert "<h2>Hybrid search</h2>" in page
    assert "weight of the retriever" in page
    assert "| hybrid |" in summary
    assert "ybrid search" in summary


def test_only_the_split_that_chose_says_that_it_did(evaluated):
    (_, content), _ = evaluated
    said = {name: any("was chosen on these" in note for note in s["notes"]) for name, s in content["splits"].items()}
    assert said == {"dev": True, "test": False}
    assert any("the best of 11 by nDCG@10 on dev" in note for note in content["notes"])


def test_a_split_that_is_not_evaluated_chooses_all_the_same(with_dev, evaluated, tmp_path):
    (_, content), _ = evaluated
    _, alone = run(with_dev, tmp_path, splits="test", untuned_passages=0)
    assert alone["hybrid"] == content["hybrid"]
    assert list(alone["splits"]) == ["test"]
    assert alone["splits"]["test"]["per_query"]["hybrid"] == content["splits"]["test"]["per_query"]["hybrid"]


def test_without_a_split_for_choosing_both_weigh_the_same_and_the_report_says_so(unspoilt_inputs, tmp_path):
    _, content = run(unspoilt_inputs, tmp_path, untuned_passages=0)
    assert content["hybrid"] | {"family": ""} == {
        "fusion": "convex",
        "weight": 0.5,
        "chosen_on": "",
        "metric": "ndcg@10",
        "family": "",
        "curve": [],
        "rrf": None,
    }
    assert any("not chosen, because no split called dev" in note for note in content["notes"])


def test_a_given_weight_is_taken(with_dev, tmp_path):
    _, content = run(with_dev, tmp_path, untuned_passages=0, hybrid_weight=0.0)
    for split in content["splits"].values():
        assert split["systems"]["hybrid"] == pytest.approx(split["systems"]["BM25"])
    assert (content["hybrid"]["weight"], content["hybrid"]["chosen_on"]) == (0.0, "")
    assert not any("was chosen on these" in note for note in content["splits"]["dev"]["notes"])


def test_reciprocal_ranks_are_fused_and_weighed_against_scores(with_dev, tmp_path):
    _, fixed = run(with_dev, tmp_path / "rrf", untuned_passages=0, hybrid_fusion="rrf")
    assert (fixed["hybrid"]["fusion"], fixed["hybrid"]["weight"]) == ("rrf", None)
    _, content = run(with_dev, tmp_path / "auto", untuned_passages=0, hybrid_fusion="auto")
    told = content["hybrid"]
    assert told["rrf"] == fixed["splits"]["dev"]["systems"]["hybrid"]["ndcg@10"]
    is_convex = max(value for _, value in told["curve"]) >= told["rrf"]
    assert told["fusion"] == ("convex" if is_convex else "rrf")


def test_without_a_bm25_run_there_is_nothing_of_it(unspoilt_inputs, tmp_path):
    metrics, content = run(unspoilt_inputs, tmp_path, splits="train", untuned_passages=0)
    assert "hybrid" not in json.dumps(content).lower()
    assert not any("hybrid" in name for name in metrics)
    assert "ybrid" not in (tmp_path / "report.html").read_text()


def test_the_settings_leave_open_what_is_not_given():
    assert choices(EvaluationSettings()) == [Fusion("convex", tenth / 10) for tenth in range(11)]
    both = choices(EvaluationSettings(hybrid_fusion="auto", hybrid_weight=0.25))
    assert both == [Fusion("convex", 0.25), Fusion("rrf")]


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_bm25()), reason="without pyserini there is no BM25 on zero-shot collections")
def test_zero_shot_collections_take_the_weight_along_and_say_where_it_harms(with_dev, tmp_path):
    """With all weight on a retriever that knows nothing, hybrid search is significantly worse than BM25."""
    stance = write_source(tmp_path / "in" / "stance")
    _, content = run(with_dev, tmp_path, untuned_passages=0, hybrid_weight=1.0, zero_shot=f"{stance}#test")
    split = content["splits"]["stance/test"]
    assert split["systems"]["hybrid"] == split["systems"]["retriever"] != split["systems"]["BM25"]
    assert content["zero_shot"]["mean"]["hybrid"] == split["systems"]["hybrid"]
    against = {c["baseline"]: c for c in split["hybrid_comparisons"]}
    assert (against["BM25"]["verdict"], against["retriever"]["verdict"]) == ("significant", "not significant")
    notes = [note for note in split["notes"] if "harms here" in note]
    assert len(notes) == 1
    assert "significantly lower than that of BM25 alone" in notes[0]
    assert notes[0] in (tmp_path / "report.html").read_text()
