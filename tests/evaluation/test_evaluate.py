from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.data.collection_report import statistics_markdown, what_was_changed
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.evaluation.evaluate import evaluate
from llm_retriever.evaluation.splits import open_split
from llm_retriever.indexing.build import build_index
from llm_retriever.methods import NEW_TOKENS
from llm_retriever.metrics.measures import means, parse_measures, score_queries
from llm_retriever.metrics.runs import read_run, write_run
from llm_retriever.metrics.significance import hommel
from llm_retriever.models.card import RetrieverCard, weights_digest
from llm_retriever.settings import CorpusSettings, EvaluationSettings, IndexSettings
from llm_retriever.training.vocabulary import extended
from tests.conftest import seal, write_backbone
from tests.evaluation.conftest import write_source

SETTINGS = EvaluationSettings(depth=20, measures="mrr@10,ndcg@10,recall@20", precision="fp32")


def outputs(directory: Path) -> dict[str, Path]:
    return {
        "evaluation": directory / "evaluation",
        "report": directory / "report.html",
        "summary": directory / "summary.md",
        "refreshed": directory / "refreshed",
    }


def run(inputs: dict[str, Path], directory: Path, **changes) -> tuple[dict[str, float], dict]:
    """The flat metrics and the content of evaluation.json."""
    metrics = evaluate(dataclasses.replace(SETTINGS, **changes), **inputs, **outputs(directory))
    return metrics, json.loads((directory / "evaluation" / "evaluation.json").read_text())


def refused(inputs: dict[str, Path], directory: Path, **changes) -> str:
    """The message of the refusal; nothing may have been written."""
    with pytest.raises(InputError) as caught:
        run(inputs, directory, **changes)
    left = [path for path in directory.rglob("*") if directory / "in" not in path.parents and path != directory / "in"]
    assert left == []
    return str(caught.value)


@pytest.fixture(scope="module")
def evaluated(unspoilt_inputs, tmp_path_factory):
    """An evaluation with all defaults; not to be changed."""
    directory = tmp_path_factory.mktemp("evaluated")
    return run(unspoilt_inputs, directory), directory


def test_the_run_of_the_retriever_is_the_exact_ranking_of_its_vectors(unspoilt_inputs, evaluated):
    corpus = Collection.open(unspoilt_inputs["collection"])
    retriever = Retriever.load(unspoilt_inputs["retriever"], precision="fp32")
    passages, queries = list(corpus.passages()), corpus.queries("graded")
    scores = retriever.encode_queries(list(queries.values())) @ retriever.encode_passages(passages).T
    found = read_run(evaluated[1] / "evaluation" / "runs" / "graded" / "retriever.trec")
    for row, query in enumerate(queries):
        assert len(found[query]) == 20
        best = np.sort(scores[row])[::-1][:20]
        assert list(found[query].values()) == pytest.approx(best.tolist(), abs=1e-5)
        by_id = {passage.id: float(scores[row][i]) for i, passage in enumerate(passages)}
        assert all(score == pytest.approx(by_id[p], abs=1e-5) for p, score in found[query].items())


@pytest.mark.parametrize("system", ["retriever", "hybrid", "BM25", "backbone"])
def test_the_values_are_those_of_the_runs_that_are_kept(system, unspoilt_inputs, evaluated):
    (metrics, content), directory = evaluated
    qrels = Collection.open(unspoilt_inputs["collection"]).qrels("graded")
    kept = read_run(directory / "evaluation" / "runs" / "graded" / f"{system}.trec")
    expected = means(score_queries(parse_measures(SETTINGS.measures), qrels, kept))
    assert content["splits"]["graded"]["systems"][system] == pytest.approx(expected)
    suffix = "" if system == "retriever" else f"_{system.lower()}"
    assert metrics[f"graded_ndcg_at_10{suffix}"] == pytest.approx(expected["ndcg@10"])


def test_all_numbers_are_finite_and_named_for_kubeflow(evaluated):
    (metrics, _), _ = evaluated
    assert len(metrics) == 2 * 3 * 4
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert all(name.replace("_", "").isalnum() and name.islower() for name in metrics)
    assert {"test_mrr_at_10", "test_recall_at_20_bm25", "graded_ndcg_at_10_backbone"} <= metrics.keys()


def test_the_three_systems_differ_and_their_per_query_scores_are_kept(unspoilt_inputs, evaluated):
    (_, content), _ = evaluated
    split = content["splits"]["test"]
    assert list(split["systems"]) == list(split["per_query"]) == ["retriever", "hybrid", "BM25", "backbone"]
    queries = Collection.open(unspoilt_inputs["collection"]).qrels("test").keys()
    for system, scores in split["per_query"].items():
        assert scores.keys() == queries
        assert split["systems"][system]["ndcg@10"] == pytest.approx(sum(scores.values()) / split["queries"])
    assert split["per_query"]["retriever"] != split["per_query"]["backbone"]


def test_the_comparisons_are_on_the_primary_metric_with_the_family_declared(evaluated):
    (_, content), _ = evaluated
    comparisons = content["splits"]["test"]["comparisons"]
    assert [c["baseline"] for c in comparisons] == ["BM25", "backbone"]
    assert {c["metric"] for c in comparisons} == {"ndcg@10"} == {content["primary_metric"]}
    assert [c["t_test_hommel"] for c in comparisons] == pytest.approx(hommel([c["t_test"] for c in comparisons]))
    assert content["significance"]["family"] == "all baselines × the primary metric × one split"
    for c in comparisons:
        assert c["wins"] + c["ties"] + c["losses"] == c["queries"] == 10


def test_what_was_compared_and_what_it_cost_is_told(unspoilt_inputs, evaluated):
    (_, content), _ = evaluated
    assert content["collection"] == Collection.open(unspoilt_inputs["collection"]).fingerprint
    assert content["card"] == RetrieverCard.load(unspoilt_inputs["retriever"]).digest()
    assert content["systems"]["BM25"]["parameters"] == {"k1": 0.9, "b": 0.4, "depth": 1000}
    assert content["costs"]["training"] == [{"stage": "contrastive", "seconds": 3.5, "examples": 20}]
    assert content["costs"]["index_bytes"] == 40 * 64 * 4
    assert content["costs"]["query_encoding_ms"] > 0
    assert content["versions"]["pytrec_eval-terrier"]
    assert content["splits"]["graded"]["judgments"] == 16


def test_a_passage_with_the_id_of_the_query_is_left_out_and_replaced(evaluated):
    for system in ("retriever", "hybrid", "BM25", "backbone"):
        kept = read_run(evaluated[1] / "evaluation" / "runs" / "test" / f"{system}.trec")
        assert "p39" not in kept["p39"]
        assert {len(ranking) for ranking in kept.values()} == {20}


def test_report_and_summary_are_written(evaluated):
    _, directory = evaluated
    page = (directory / "report.html").read_text()
    assert "Loss of the contrastive tuning" in page
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert (directory / "summary.md").read_text().startswith("# Evaluation\n")


def test_a_second_evaluation_gives_the_same_figures(unspoilt_inputs, evaluated, tmp_path):
    (metrics, content), _ = evaluated
    again, repeated = run(unspoilt_inputs, tmp_path)
    assert again == metrics
    assert repeated["splits"] == content["splits"]


def test_the_chosen_splits_alone_are_evaluated(unspoilt_inputs, tmp_path):
    _, content = run(unspoilt_inputs, tmp_path, splits=" graded ,graded", untuned_passages=0)
    assert list(content["splits"]) == ["graded"]


def test_training_queries_are_evaluated_on_demand_and_said_to_be_such(unspoilt_inputs, tmp_path):
    _, content = run(unspoilt_inputs, tmp_path, splits="train", untuned_passages=0)
    notes = " ".join(content["splits"]["train"]["notes"])
    assert "was trained on these queries" in notes
    assert "no BM25 run of this split" in notes
    assert content["splits"]["train"]["comparisons"] == []
    assert "no baseline" in (tmp_path / "report.html").read_text()


def test_the_untuned_backbone_is_left_out_on_demand_which_is_noted(unspoilt_inputs, tmp_path):
    metrics, content = run(unspoilt_inputs, tmp_path, untuned_passages=0)
    assert content["notes"][0] == "The un-tuned backbone was not evaluated: untuned_passages is 0."
    assert list(content["splits"]["test"]["systems"]) == ["retriever", "hybrid", "BM25"]
    assert not any(name.endswith("_backbone") for name in metrics)
    assert content["notes"][0] in (tmp_path / "report.html").read_text()
    assert content["notes"][0] in (tmp_path / "summary.md").read_text()


def test_of_a_large_corpus_the_untuned_backbone_searches_what_is_judged_and_some_more(
    unspoilt_inputs, evaluated, tmp_path
):
    (_, whole), _ = evaluated
    corpus = Collection.open(unspoilt_inputs["collection"])
    judged = {passage for split in whole["splits"] for grades in corpus.qrels(split).values() for passage in grades}
    _, part = run(unspoilt_inputs, tmp_path, depth=40, untuned_passages=len(judged) + 5)
    searched = part["systems"]["backbone"]["passages"]
    assert len(judged) < searched < whole["systems"]["backbone"]["passages"] == 40
    assert part["notes"][0].startswith(f"The un-tuned backbone searched {searched} of 40 passages")
    for split, content in part["splits"].items():
        found = read_run(tmp_path / "evaluation" / "runs" / split / "backbone.trec")
        assert {len(ranking) for ranking in found.values()} == {searched}
        assert judged <= set().union(*found.values())
        for metric, value in content["systems"]["backbone"].items():
            assert value >= whole["splits"][split]["systems"]["backbone"][metric]


def test_a_primary_metric_that_is_not_among_the_measures_is_added(unspoilt_inputs, tmp_path):
    metrics, content = run(unspoilt_inputs, tmp_path, measures="mrr@10", primary_metric="recall@5", untuned_passages=0)
    assert content["measures"] == ["mrr@10", "recall@5"]
    assert "test_recall_at_5" in metrics


def test_the_relevance_level_falls_back_to_the_highest_grade_of_a_split_and_says_so(unspoilt_inputs, tmp_path):
    _, content = run(unspoilt_inputs, tmp_path, relevance_level=2, untuned_passages=0)
    assert (content["splits"]["test"]["relevance_level"], content["splits"]["graded"]["relevance_level"]) == (1, 2)
    assert "No judgment reaches relevance level 2; level 1 was used." in content["splits"]["test"]["notes"]


def test_a_shallow_bm25_run_is_noted(inputs, tmp_path):
    manifest = json.loads((inputs["bm25_runs"] / "runs.json").read_text())
    manifest["parameters"]["depth"] = 15
    (inputs["bm25_runs"] / "runs.json").write_text(json.dumps(manifest))
    _, content = run(inputs, tmp_path, untuned_passages=0)
    assert "BM25 was searched to depth 15 only" in content["notes"][0]


def test_a_retriever_without_a_training_log_has_no_curve(inputs, tmp_path):
    (inputs["retriever"] / "training_log.json").unlink()
    run(inputs, tmp_path, untuned_passages=0)
    assert "<h2>Training</h2>" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": "test,dev"}, "the collection has no split 'dev'; use train,"),
        ({"measures": "mrr@10,f1"}, "field \"measures\": 'f1' is no metric"),
        ({"primary_metric": "ndcg"}, "field \"primary_metric\": 'ndcg' is no metric"),
        ({"primary_metric": "ndcg@10,mrr@10"}, "is more than one metric"),
        ({"primary_metric": "recall@100"}, 'field "depth": recall@100 needs more than 20 passages per query'),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(changes, message, unspoilt_inputs, tmp_path):
    assert message in refused(unspoilt_inputs, tmp_path, **changes)


@pytest.mark.parametrize("text", ["", "first"])
def test_a_system_that_finds_nothing_counts_as_0_with_a_note(text, inputs, tmp_path):
    for file, rest in (("test.trec", "BM25"), ("other.trec", "other")):
        lines = (inputs["bm25_runs"] / "test.trec").read_text().splitlines() if text and rest == "BM25" else []
        first = [line for line in lines if line.split()[0] == lines[0].split()[0]]
        (inputs["bm25_runs"] / file).write_text("".join(f"{line}\n" for line in first))
    metrics, content = run(inputs, tmp_path, untuned_passages=0, runs=f"other={inputs['bm25_runs']}/other.trec")
    assert metrics["test_ndcg_at_10_other"] == 0
    notes = content["splits"]["test"]["notes"]
    assert "other has no passage for 10 of 10 queries, which count as 0." in notes
    assert f"BM25 has no passage for {9 if text else 10} of 10 queries, which count as 0." in notes
    assert (metrics["test_ndcg_at_10_bm25"] > 0) == bool(text)
    assert not any("BM25 has no passage" in note for note in content["splits"]["graded"]["notes"])


def test_runs_of_another_collection_are_refused(inputs, tmp_path):
    manifest = json.loads((inputs["bm25_runs"] / "runs.json").read_text()) | {"collection": "0" * 64}
    (inputs["bm25_runs"] / "runs.json").write_text(json.dumps(manifest))
    message = refused(inputs, tmp_path)
    assert "runs.json" in message
    assert "made from another collection (000000000000 instead of" in message


def test_a_run_that_names_unknown_passages_is_refused(inputs, tmp_path):
    rows = [(query, [("nowhere", 1.0)]) for query in read_run(inputs["bm25_runs"] / "test.trec")]
    write_run(inputs["bm25_runs"] / "test.trec", rows, "BM25")
    assert "passage 'nowhere' is not in the collection" in refused(inputs, tmp_path)


def test_a_directory_without_runs_is_refused(inputs, tmp_path):
    (inputs["bm25_runs"] / "runs.json").unlink()
    assert "runs.json: no such file" in refused(inputs, tmp_path)


def test_an_index_of_another_collection_is_refused(inputs, tmp_path):
    manifest = json.loads((inputs["index"] / "manifest.json").read_text()) | {"collection": "0" * 64}
    (inputs["index"] / "manifest.json").write_text(json.dumps(manifest))
    assert "made from another collection" in refused(inputs, tmp_path)


def test_an_index_of_another_retriever_is_refused(inputs, tmp_path):
    write_backbone(inputs["retriever"] / "model", seed=5)
    card = RetrieverCard.load(inputs["retriever"])
    dataclasses.replace(card, weights=weights_digest(inputs["retriever"] / "model")).save(inputs["retriever"])
    assert "the index was made by another retriever" in refused(inputs, tmp_path)


def test_another_backbone_than_the_retrievers_is_refused(inputs, tmp_path):
    write_backbone(inputs["backbone"], seed=9)
    assert "not the backbone that the retriever was made from" in refused(inputs, tmp_path)


def test_a_retriever_without_a_card_is_refused(inputs, tmp_path):
    (inputs["retriever"] / "retriever_card.json").unlink()
    assert "retriever_card.json: no such file" in refused(inputs, tmp_path)


def test_a_collection_with_training_queries_alone_must_be_named(inputs, tmp_path):
    manifest = json.loads((inputs["collection"] / "collection.json").read_text())
    manifest["splits"] = {"train": manifest["splits"]["train"]}
    (inputs["collection"] / "collection.json").write_text(json.dumps(manifest))
    assert "only the split train" in refused(inputs, tmp_path)


def seal_all(inputs: dict[str, Path]) -> None:
    """Makes a changed collection whole again, and index and runs those of it."""
    fingerprint = seal(inputs["collection"])
    for told in (inputs["index"] / "manifest.json", inputs["bm25_runs"] / "runs.json"):
        told.write_text(json.dumps(json.loads(told.read_text()) | {"collection": fingerprint}))


def unlink_vectors(inputs: dict[str, Path]) -> None:
    next(inputs["index"].glob("vectors-*.npy")).unlink()


def permute_vectors(inputs: dict[str, Path]) -> None:
    path = next(inputs["index"].glob("vectors-*.npy"))
    np.save(path, np.load(path)[::-1].copy())


def spoil_vectors(inputs: dict[str, Path]) -> None:
    path = next(inputs["index"].glob("vectors-*.npy"))
    vectors = np.load(path)
    vectors[0, 0] = np.nan
    np.save(path, vectors)


def cut_weights(inputs: dict[str, Path]) -> None:
    path = inputs["retriever"] / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def unlink_weights(inputs: dict[str, Path]) -> None:
    (inputs["retriever"] / "model" / "model.safetensors").unlink()


def flip_backbone(inputs: dict[str, Path]) -> None:
    path = inputs["backbone"] / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def change_corpus(inputs: dict[str, Path]) -> None:
    path = inputs["collection"] / "corpus.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"the", b"The", 1))
    assert path.stat().st_size == len(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (unlink_vectors, "the vectors cannot be read"),
        (permute_vectors, "does not have its checksum"),
        (spoil_vectors, "does not have its checksum"),
        (cut_weights, "the weights are not those that the card belongs to"),
        (unlink_weights, "the weights are not those that the card belongs to"),
        (flip_backbone, "the weights are not those that it was fetched with"),
        (change_corpus, "a file was changed"),
    ],
)
def test_what_is_not_whole_is_not_measured(inputs, tmp_path, damage, told):
    damage(inputs)
    assert told in refused(inputs, tmp_path)


def test_a_split_without_judgments_is_refused(inputs, tmp_path):
    qrels = inputs["collection"] / "qrels" / "test.tsv"
    qrels.write_text("query-id\tcorpus-id\tscore\n")
    seal_all(inputs)
    assert "the split 'test' has no judgments" in refused(inputs, tmp_path)


def test_a_backbone_without_the_retrievers_embedding_tokens_is_left_out_which_is_noted(inputs, tmp_path):
    card, retriever = RetrieverCard.load(inputs["retriever"]), tmp_path / "read-at-new-tokens"
    with extended(inputs["backbone"], NEW_TOKENS[:4]) as base:
        shutil.copytree(base, retriever / "model")
    query, passage = (dataclasses.replace(w, embedding_tokens=NEW_TOKENS[:4]) for w in (card.query, card.passage))
    digest = weights_digest(retriever / "model")
    dataclasses.replace(card, query=query, passage=passage, pooling="embedding", weights=digest).save(retriever)
    build_index(retriever, inputs["collection"], tmp_path / "index", IndexSettings())
    _, content = run({**inputs, "retriever": retriever, "index": tmp_path / "index"}, tmp_path)
    assert "read out at <s1>, a token that only stage one has added" in content["notes"][0]
    assert list(content["splits"]["test"]["systems"]) == ["retriever", "hybrid", "BM25"]


def test_the_measures_of_a_benchmark_are_taken_with_levels_of_their_own(unspoilt_inputs, tmp_path):
    changes = {"measures": "trec-dl", "depth": 1000, "splits": "graded", "untuned_passages": 0}
    metrics, content = run(unspoilt_inputs, tmp_path, **changes)
    assert content["measures"] == ["ndcg@10", "map(rel=2)", "recall(rel=2)@1000", "recall(rel=1)@1000"]
    assert content["splits"]["graded"]["notes"] == []
    assert metrics["graded_recall_rel_2_at_1000"] == 1.0  # every system returns the whole corpus
    qrels = Collection.open(unspoilt_inputs["collection"]).qrels("graded")
    kept = read_run(tmp_path / "evaluation" / "runs" / "graded" / "retriever.trec")
    (measure,) = parse_measures("map")
    expected = means(score_queries([measure], qrels, kept, relevance_level=2))["map"]
    assert metrics["graded_map_rel_2"] == pytest.approx(expected)
    page = (tmp_path / "report.html").read_text()
    assert "MAP (grade ≥ 2)" in page


def test_a_measure_whose_level_no_judgment_reaches_is_taken_at_the_highest_grade_which_is_noted(
    unspoilt_inputs, tmp_path
):
    changes = {"measures": "recall(rel=2)@20,recall(rel=1)@20", "splits": "test", "untuned_passages": 0}
    _, content = run(unspoilt_inputs, tmp_path, **changes)
    values = content["splits"]["test"]["systems"]["BM25"]
    assert values["recall(rel=2)@20"] == values["recall(rel=1)@20"] > 0
    assert "No judgment reaches relevance level 2; level 1 was used." in content["splits"]["test"]["notes"]


def test_wins_and_losses_are_listed_by_query_for_every_baseline(evaluated):
    (_, content), _ = evaluated
    split = content["splits"]["graded"]
    for comparison in split["comparisons"]:
        listed = split["wins_and_losses"][comparison["baseline"]]
        ours, theirs = (split["per_query"][system] for system in ("retriever", comparison["baseline"]))
        assert len(listed["won"]) == comparison["wins"]
        assert len(listed["lost"]) == comparison["losses"]
        assert all(ours[query] > theirs[query] for query in listed["won"])
        assert all(ours[query] < theirs[query] for query in listed["lost"])


def test_the_many_ties_of_the_reciprocal_rank_are_noted(unspoilt_inputs, tmp_path):
    changes = {"measures": "mrr@10", "primary_metric": "mrr@1", "splits": "test"}
    _, content = run(unspoilt_inputs, tmp_path, **changes)
    split = content["splits"]["test"]
    tied = [c for c in split["comparisons"] if c["tie_share"] >= 0.5]
    assert tied
    for c in tied:
        note = f"MRR@1 is the same for the retriever and {c['baseline']} on {c['ties']} of 10 queries"
        assert any(found.startswith(note) for found in split["notes"])


def test_the_evaluation_says_how_much_the_retriever_costs(unspoilt_inputs, evaluated):
    (_, content), _ = evaluated
    found = content["efficiency"]
    assert found["training_seconds"] == 3.5
    assert found["training_process_hours"] == pytest.approx(3.5 / 3600)
    assert found["index_bytes"] == content["costs"]["index_bytes"]
    assert found["index_seconds"] == content["costs"]["index_seconds"]


def test_the_evaluation_of_a_single_query_holds_no_number_that_is_not_finite(inputs, tmp_path):
    qrels = inputs["collection"] / "qrels" / "test.tsv"
    header, first, *_ = qrels.read_text().splitlines(keepends=True)
    qrels.write_text(header + first)
    seal_all(inputs)
    metrics, content = run(inputs, tmp_path, splits="test", untuned_passages=0)
    (comparison,) = content["splits"]["test"]["comparisons"]
    assert (comparison["queries"], comparison["interval"], comparison["effect_size"]) == (1, None, None)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("length", [112, 160])
def test_texts_that_are_cut_are_counted_in_the_report(unspoilt_inputs, tmp_path, length):
    retriever = Retriever.load(unspoilt_inputs["retriever"], precision="fp32")
    corpus = Collection.open(unspoilt_inputs["collection"])
    build_index(
        unspoilt_inputs["retriever"],
        unspoilt_inputs["collection"],
        tmp_path / "in" / "index",
        IndexSettings(precision="fp32", passage_length=length),
    )
    inputs = {**unspoilt_inputs, "index": tmp_path / "in" / "index"}
    _, content = run(inputs, tmp_path, untuned_passages=0, query_length=length)
    queries = list(corpus.queries("test").values())
    longest = {
        "passages": [len(row) for row in retriever.tokenise_passages(list(corpus.passages()), length=500)],
        "queries": [len(row) for row in retriever.tokenise_queries(queries, length=500)],
    }
    for kind, notes in (("passages", content["notes"]), ("queries", content["splits"]["test"]["notes"])):
        cut = sum(number > length for number in longest[kind])
        told = (
            f"{cut} of {len(longest[kind])} {kind} are longer than {length} tokens; what is behind them was not read."
        )
        assert [note for note in notes if "are longer than" in note] == ([told] if cut else [])
        if cut:
            assert told in (tmp_path / "report.html").read_text()
            assert told in (tmp_path / "summary.md").read_text()
    assert any(number > 112 for number in longest["passages"])
    assert any(number > 112 for number in longest["queries"])


def test_queries_without_a_relevant_passage_and_what_was_dropped_are_told(tmp_path):
    source = write_source(tmp_path / "source")
    qrels = source / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().replace("q20\tp20\t1", "q20\tp20\t0").replace("q21\tp21\t1", "q21\tp21\t-1"))
    (source / "old.tsv").write_text("x")
    manifest = preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")
    assert manifest["splits"]["test"]["without_relevant"] == 2
    (row,) = [line for line in statistics_markdown(manifest).splitlines() if line.startswith("| test |")]
    assert row.endswith("| 2 |")
    told = "2 of 10 queries have no passage of grade 1 or more, and count as 0 wherever one is looked for."
    assert open_split(Collection.open(tmp_path / "collection"), "test", [1], 10).notes == [told]
    assert what_was_changed(manifest) == ["files not read, because the layout has no such files: `old.tsv`"]
