"""Query-likelihood re-ranking and the attention analysis within the step `evaluate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation.evaluate import evaluate
from llm_retriever.metrics.runs import read_run
from llm_retriever.models.card import RetrieverCard, Stage, load_lineage, save_lineage
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt, load_language_model
from llm_retriever.settings import EvaluationSettings
from llm_retriever.training.vocabulary import extended

OFF = {"untuned_passages": 0, "attention_queries": 0}


def evaluated(inputs: dict[str, Path], directory: Path, **changes: Any) -> dict[str, Any]:
    """`evaluation.json` and, under `metrics`, what the step gives Kubeflow."""
    settings = EvaluationSettings(depth=20, measures="ndcg@10", precision="fp32", **(OFF | changes))
    names = {"evaluation": "evaluation", "report": "report.html", "summary": "summary.md", "refreshed": "refreshed"}
    metrics = evaluate(settings, **inputs, **{key: directory / name for key, name in names.items()})
    return json.loads((directory / "evaluation" / "evaluation.json").read_text()) | {"metrics": metrics}


def orders(path: Path) -> dict[str, list[str]]:
    return {query: list(ranking) for query, ranking in read_run(path).items()}


def test_re_ranked_systems_are_judged_compared_and_kept_like_any_other(asking_inputs, tmp_path):
    found = evaluated(asking_inputs, tmp_path, rerank_depth=5)
    runs = tmp_path / "evaluation" / "runs" / "test"
    first, names = orders(runs / "BM25.trec"), ("BM25+QL", "BM25+QL-no-block")
    for name in names:
        again = orders(runs / f"{name}.trec")
        assert all(set(again[query][:5]) == set(ranking[:5]) for query, ranking in first.items())
        assert all(again[query][5:] == ranking[5:] for query, ranking in first.items())
        assert again != first
        assert {name} <= {c["baseline"] for c in found["splits"]["test"]["comparisons"]}
    assert {"test_ndcg_at_10_bm25_ql", "graded_ndcg_at_10_bm25_ql_no_block"} <= found["metrics"].keys()
    told = found["systems"]["BM25+QL"]["description"]
    assert told == (
        "the first 5 passages of BM25, re-ranked by the likelihood of the query under the adapted backbone; the query sees "
        "the passage through [E] alone"
    )
    assert (found["rerank"]["pairs"], found["rerank"]["depth"], found["rerank"]["is_trained"]) == (2 * 14 * 5, 5, True)


def test_the_order_is_that_of_the_adapted_backbones_likelihood(asking_inputs, tmp_path):
    evaluated(asking_inputs, tmp_path, rerank_depth=4, rerank_attention_block="off", splits="graded")
    corpus = Collection.open(asking_inputs["collection"])
    model, tokenizer = load_language_model(asking_inputs["adapted"], precision="fp32")
    template = QueryPrompt.of(load_lineage(asking_inputs["adapted"]))
    scorer = QueryLikelihood(model, tokenizer, template, corpus.lookup())
    runs = tmp_path / "evaluation" / "runs" / "graded"
    first, again = read_run(runs / "BM25.trec"), read_run(runs / "BM25+QL-no-block.trec")
    for query, text in corpus.queries("graded").items():
        pairs = [(text, passage) for passage in list(first[query])[:4]]
        scores = dict(zip((p for _, p in pairs), scorer.scores(pairs, attention_block=False), strict=True))
        assert list(again[query])[:4] == sorted(scores, key=lambda p: -scores[p])
        assert [again[query][p] for p in scores] == pytest.approx(list(scores.values()), abs=1e-3)


def test_the_tuned_model_can_re_rank_the_retrievers_own_passages_and_be_mixed_with_it(asking_inputs, tmp_path):
    changes = {"rerank_from": "retriever", "rerank_model": "tuned", "rerank_attention_block": "off"}
    found = evaluated(asking_inputs, tmp_path, rerank_depth=5, rerank_interpolation=0.2, splits="test", **changes)
    told = found["systems"]["retriever+QL-no-block"]["description"]
    assert "under the tuned model;" in told
    assert told.endswith("mixed with weight 0.2 of retriever")
    again = read_run(tmp_path / "evaluation" / "runs" / "test" / "retriever+QL-no-block.trec")
    best = [max(ranking.values()) for ranking in again.values()]
    assert all(0.2 <= score <= 1 for score in best)


def test_a_model_that_was_never_trained_to_ask_is_told_so(unspoilt_inputs, tmp_path):
    found = evaluated(unspoilt_inputs, tmp_path, rerank_depth=2, rerank_attention_block="on", splits="test")
    assert (
        "adapted backbone, which was never trained to generate queries;" in found["systems"]["BM25+QL"]["description"]
    )
    assert found["rerank"]["is_trained"] is False


def test_a_split_without_a_first_stage_says_that_nothing_is_re_ranked(inputs, tmp_path):
    (inputs["bm25_runs"] / "graded.trec").unlink()
    found = evaluated(inputs, tmp_path, rerank_depth=2, rerank_attention_block="on")["splits"]
    told = "There is no BM25 run of this split, so there is nothing to re-rank."
    assert told in found["graded"]["notes"]
    assert told not in found["test"]["notes"]


@pytest.mark.parametrize("changes", [{"rerank_depth": 2}, {"attention_queries": 2}])
def test_an_adapted_backbone_of_another_run_is_refused_before_anything_is_read_or_written(
    changes, inputs, asking_inputs, tmp_path
):
    shutil.rmtree(inputs["index"])
    with pytest.raises(InputError, match="not the adapted backbone that the retriever was tuned from") as caught:
        evaluated(inputs | {"adapted": asking_inputs["adapted"]}, tmp_path / "out", **changes)
    assert caught.value.field == "adapted"
    assert not (tmp_path / "out" / "evaluation").exists()


def test_without_an_adapted_backbone_there_is_nothing_to_re_rank_with(asking_inputs, tmp_path):
    inputs = {name: path for name, path in asking_inputs.items() if name != "adapted"}
    with pytest.raises(InputError, match="there is no adapted backbone to re-rank with"):
        evaluated(inputs, tmp_path, rerank_depth=2)
    assert "attention" not in evaluated(inputs, tmp_path, attention_queries=4)


def test_attention_is_shown_before_and_after_a_stage_one_that_was_ql(asking_inputs, tmp_path):
    found = evaluated(asking_inputs, tmp_path, attention_queries=3, splits="graded,test")["attention"]
    assert (found["split"], found["queries"], found["pairs"]) == ("graded", 3, 9)
    assert list(found["models"]) == ["backbone", "adapted backbone"]
    before, after = found["models"].values()
    assert before["layers"] != after["layers"]
    for model in (before, after):
        assert [sum(layer) for layer in model["layers"]] == pytest.approx([1.0] * 3, abs=1e-5)


def test_attention_is_not_looked_at_where_stage_one_was_something_else(unspoilt_inputs, tmp_path):
    assert "attention" not in evaluated(unspoilt_inputs, tmp_path, attention_queries=3)


def test_a_backbone_without_the_embedding_tokens_is_left_out_with_a_note(inputs, asking_inputs, tmp_path):
    lineage = load_lineage(asking_inputs["adapted"])
    stage = Stage("ql", {**lineage.stages[0].settings, "embedding_tokens": [["<s1>"], ["<s1>"]]})
    lineage = dataclasses.replace(lineage, stages=(stage,))
    with extended(inputs["backbone"], ["<s1>"]) as directory:
        shutil.copytree(directory, tmp_path / "adapted")
    save_lineage(tmp_path / "adapted", lineage)
    card = RetrieverCard.load(inputs["retriever"])
    dataclasses.replace(card, lineage=lineage.then(card.lineage.stages[-1])).save(inputs["retriever"])
    found = evaluated(inputs | {"adapted": tmp_path / "adapted"}, tmp_path, attention_queries=3, splits="graded")
    assert list(found["attention"]["models"]) == ["adapted backbone"]
    assert any("it has no token <s1>" in note for note in found["notes"])


def test_the_losses_of_both_stages_are_kept_where_their_outputs_bring_a_log(asking_inputs, tmp_path):
    adapted = Path(shutil.copytree(asking_inputs["adapted"], tmp_path / "adapted"))
    log = {"steps": [{"step": i, "loss": 9.0 / i} for i in range(1, 1001)], "seconds": 1.0, "examples": 5}
    (adapted / "training_log.json").write_text(json.dumps(log))
    curves = evaluated(asking_inputs | {"adapted": adapted}, tmp_path, splits="graded")["curves"]
    assert [curve["title"] for curve in curves] == ["Loss of stage one (ql)", "Loss of the contrastive tuning"]
    points = curves[0]["points"]
    assert (points[0][0], points[-1][0]) == (1, 1000)
    assert points[0][1] == pytest.approx((9 + 4.5 + 3) / 3)
    assert len(points) <= 400
    assert len(curves[1]["points"]) == 8
