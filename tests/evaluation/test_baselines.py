from __future__ import annotations

import dataclasses
import json
import shutil

import pytest

from llm_retriever import files
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.evaluation.baselines import Baselines, Task, fitting, tokens_of_all_copies, with_kept_ids
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.evaluation.named_list import named
from llm_retriever.indexing.build import build_index
from llm_retriever.metrics.runs import read_run, write_run
from llm_retriever.models.card import RetrieverCard, weights_digest
from llm_retriever.settings import CorpusSettings, EvaluationSettings, IndexSettings
from tests.conftest import write_backbone
from tests.evaluation.conftest import write_source
from tests.evaluation.test_evaluate import refused, run


def another_retriever(inputs, directory, seed=7):
    """A retriever with other weights, wired like that of the inputs."""
    write_backbone(directory / "model", seed=seed)
    card = RetrieverCard.load(inputs["retriever"])
    dataclasses.replace(card, weights=weights_digest(directory / "model")).save(directory)
    return directory


def in_two_copies(inputs, directory):
    """The inputs with a retriever that reads every text twice, and its index."""
    shutil.copytree(inputs["retriever"], directory / "retriever")
    card = RetrieverCard.load(inputs["retriever"])
    query, passage = (dataclasses.replace(w, between=" again: ", tokenise="pieces") for w in (card.query, card.passage))
    dataclasses.replace(card, query=query, passage=passage, query_length=300, passage_length=300).save(
        directory / "retriever"
    )
    settings = IndexSettings(passage_length=120, precision="fp32")
    build_index(directory / "retriever", inputs["collection"], directory / "index", settings)
    return {**inputs, "retriever": directory / "retriever", "index": directory / "index"}


def test_an_encoder_is_one_more_system_on_every_split(unspoilt_inputs, tmp_path):
    other = another_retriever(unspoilt_inputs, tmp_path / "in" / "other")
    metrics, content = run(unspoilt_inputs, tmp_path, encoders=f"{other}, Again={other}", untuned_passages=0)
    assert list(content["splits"]["test"]["systems"]) == ["retriever", "hybrid", "BM25", "other", "Again"]
    assert content["systems"]["other"]["description"] == "an encoder that was given (other)"
    assert content["systems"]["Again"]["parameters"]["dimension"] == 64
    values = content["splits"]["test"]["per_query"]
    assert values["other"] == values["Again"] != values["retriever"]
    assert metrics["test_ndcg_at_10_again"] == content["splits"]["test"]["systems"]["Again"]["ndcg@10"]
    assert content["costs"]["encoder_seconds"].keys() == {"other", "Again"}


def test_the_family_of_the_correction_grows_with_the_baselines(unspoilt_inputs, tmp_path):
    others = ",".join(str(another_retriever(unspoilt_inputs, tmp_path / "in" / f"o{i}", i)) for i in (7, 8))
    _, content = run(unspoilt_inputs, tmp_path, encoders=others)
    comparisons = content["splits"]["graded"]["comparisons"]
    assert [c["baseline"] for c in comparisons] == ["BM25", "backbone", "o7", "o8"]
    assert all(c["t_test_hommel"] >= c["t_test"] for c in comparisons)


def test_the_run_of_an_encoder_is_that_of_its_own_evaluation(unspoilt_inputs, tmp_path):
    other = another_retriever(unspoilt_inputs, tmp_path / "in" / "other")
    build_index(other, unspoilt_inputs["collection"], tmp_path / "in" / "index", IndexSettings(precision="fp32"))
    _, beside = run(unspoilt_inputs, tmp_path / "beside", encoders=str(other), untuned_passages=0)
    inputs = {**unspoilt_inputs, "retriever": other, "index": tmp_path / "in" / "index"}
    _, alone = run(inputs, tmp_path / "alone", untuned_passages=0)
    assert beside["splits"]["test"]["per_query"]["other"] == alone["splits"]["test"]["per_query"]["retriever"]


def test_a_large_corpus_is_not_encoded_by_encoders_which_is_noted(unspoilt_inputs, tmp_path):
    other = another_retriever(unspoilt_inputs, tmp_path / "in" / "other")
    _, content = run(unspoilt_inputs, tmp_path, encoders=str(other), encoder_passages=39, untuned_passages=0)
    assert list(content["splits"]["test"]["systems"]) == ["retriever", "hybrid", "BM25"]
    assert any("other was not evaluated: 40 passages are more than the limit of 39" in n for n in content["notes"])


def test_other_lexical_systems_of_the_mining_are_baselines(inputs, tmp_path):
    runs = inputs["bm25_runs"]
    manifest = files.read_json(runs / "runs.json")
    manifest["systems"] = {
        "QLM-D": {
            "description": "query likelihood, Dirichlet smoothing",
            "parameters": {"mu": 1000.0, "depth": 1000},
            "files": {"test": "test.qld.trec"},
        }
    }
    files.write_json(runs / "runs.json", manifest)
    reversed_ = [(q, [(p, -s) for p, s in found.items()]) for q, found in read_run(runs / "test.trec").items()]
    write_run(runs / "test.qld.trec", reversed_, "QLM-D")
    metrics, content = run(inputs, tmp_path, untuned_passages=0)
    assert list(content["splits"]["test"]["systems"]) == ["retriever", "hybrid", "BM25", "QLM-D"]
    assert content["systems"]["QLM-D"]["description"] == "query likelihood, Dirichlet smoothing"
    assert "test_ndcg_at_10_qlm_d" in metrics
    assert "There is no QLM-D run of this split, so QLM-D is not compared." in content["splits"]["graded"]["notes"]


@pytest.mark.parametrize("content", ["{}", "null", '{"files": null}', '{"files": [{"name": "a"}]}', "[7]"])
def test_a_damaged_list_of_lucenes_files_is_refused(content, inputs, tmp_path):
    (inputs["bm25_runs"] / "lucene.json").write_text(content)
    message = refused(inputs, tmp_path)
    assert f"{inputs['bm25_runs']}/lucene.json: " in message
    assert message.endswith("; mine the negatives again")


@pytest.mark.parametrize("facts", [{}, {"description": "x", "parameters": {}, "files": {"test": "../test.trec"}}, 7])
def test_a_lexical_system_that_is_not_described_is_refused(facts, inputs, tmp_path):
    manifest = files.read_json(inputs["bm25_runs"] / "runs.json") | {"systems": {"QLM-D": facts}}
    (inputs["bm25_runs"] / "runs.json").write_text(json.dumps(manifest))
    assert "does not say what the system 'QLM-D' is" in refused(inputs, tmp_path)


def test_runs_that_somebody_else_made_are_baselines(unspoilt_inputs, tmp_path):
    given = unspoilt_inputs["bm25_runs"]
    pattern, one = f"lexical={given}/{{split}}.trec", f"only test={given}/test.trec"
    _, content = run(unspoilt_inputs, tmp_path, runs=f"{pattern},{one}", untuned_passages=0)
    test, graded = content["splits"]["test"], content["splits"]["graded"]
    assert test["systems"]["lexical"] == test["systems"]["BM25"] == test["systems"]["only-test"]
    assert list(graded["systems"]) == ["retriever", "hybrid", "BM25", "lexical"]
    assert "There is no run of only-test for this split, so only-test is not compared." in graded["notes"]
    assert "p39" not in read_run(tmp_path / "evaluation" / "runs" / "test" / "lexical.trec")["p39"]


def test_a_run_on_s3_is_read(unspoilt_inputs, tmp_path, s3):
    from llm_retriever.stores.opening import open_store

    open_store(f"s3://{s3.bucket}/runs").upload(unspoilt_inputs["bm25_runs"])
    pattern = f"theirs=s3://{s3.bucket}/runs/{{split}}.trec"
    _, content = run(unspoilt_inputs, tmp_path, runs=pattern, untuned_passages=0)
    for split in content["splits"].values():
        assert split["systems"]["theirs"] == split["systems"]["BM25"]


def test_a_run_of_none_of_the_splits_is_refused(unspoilt_inputs, tmp_path):
    pattern = f"lost={unspoilt_inputs['bm25_runs']}/{{split}}.of-theirs.trec"
    message = refused(unspoilt_inputs, tmp_path, runs=pattern, untuned_passages=0)
    assert 'field "runs": the run lost has no query of the splits' in message


def test_a_run_file_that_does_not_exist_is_refused(unspoilt_inputs, tmp_path):
    assert "/nowhere.trec: no such run file" in refused(unspoilt_inputs, tmp_path, runs="/nowhere.trec")
    message = refused(unspoilt_inputs, tmp_path, runs="ext=s3:/x")
    assert 's3:/x: field "runs": s3:/ is not a kind of URI that can be used here; did you mean s3://?' in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoders": "BM25=/a"}, "field \"encoders\": 'BM25' is taken"),
        ({"encoders": "/a/x,/b/x"}, "field \"encoders\": 'x' is taken"),
        ({"encoders": "x=/a", "runs": "X=/b"}, "field \"runs\": 'X' is taken"),
        ({"encoders": "retriever=/a"}, "'retriever' is taken"),
    ],
)
def test_two_systems_of_one_name_are_refused(changes, message, unspoilt_inputs, tmp_path):
    assert message in refused(unspoilt_inputs, tmp_path, **changes)


def test_an_unknown_encoder_is_refused(unspoilt_inputs, tmp_path):
    message = refused(unspoilt_inputs, tmp_path, encoders="/nowhere/at-all", untuned_passages=0)
    assert "neither a published encoder nor a directory" in message


COMMIT = "0123456789" * 4


def test_a_row_of_the_table_names_its_encoder_and_keeps_its_places_and_commits(unspoilt_inputs, tmp_path):
    given, ours = tmp_path, unspoilt_inputs["retriever"]
    listed = f"dpr={given};{given}, mine=ance={given}, dragon-plus@{COMMIT};{COMMIT}, x={ours}"
    baselines = Baselines(EvaluationSettings(encoders=listed, runs="a=/b"), {})
    assert baselines.encoders == {
        "dpr": f"dpr={given},{given}",
        "mine": f"ance={given}",
        "dragon-plus": f"dragon-plus@{COMMIT},{COMMIT}",
        "x": str(ours),
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tas-b=/nowhere", "/nowhere: no such directory"),
        ("dpr={d};{d};{d}", "dpr consists of query and passage"),
        ("tas-b@main", "'main' can move or is cut short"),
        (f"tas-b@{COMMIT};{COMMIT}", "tas-b has 1 models, not 2"),
        ("{d}", "the directory does not say how it encodes"),
        ("tasb", "neither a published encoder nor a directory"),
    ],
)
def test_an_encoder_that_cannot_be_there_is_refused_at_the_start(source, message, tmp_path):
    with pytest.raises(InputError, match=message):
        Baselines(EvaluationSettings(encoders=source.replace("{d}", str(tmp_path))), {})


def test_runs_are_checked_on_the_queries_of_their_splits(unspoilt_inputs):
    given = unspoilt_inputs["bm25_runs"]
    own, zero_shot = [("test", {"q20": {}}), ("dev", {"other": {}})], [("letters/test", {"q20": {}})]
    for runs in (f"a={given}/{{split}}.trec", f"a={given}/test.trec"):
        Baselines(EvaluationSettings(runs=runs), {}).check_runs(own, zero_shot)
    Baselines(EvaluationSettings(runs=f"a={given.parent}/bm25_runs/test.tre{{split}}"), {}).check_runs(
        [("c", ["q20"])], []
    )
    with pytest.raises(InputError, match="the run a has no query of the splits"):
        Baselines(EvaluationSettings(runs=f"a={given}/test.trec"), {}).check_runs(own[1:], zero_shot)


def test_names_are_made_fit_for_files_and_metrics():
    assert named("org/model=/a", "encoders") == {"org-model": "/a"}
    assert named("cqa/android=/a", "zero_shot", parts=True) == {"cqa/android": "/a"}
    assert named("My model=/a b, hf://datasets/BeIR/scifact@0123#test,demo:python-docs", "zero_shot") == {
        "My-model": "/a b",
        "scifact": "hf://datasets/BeIR/scifact@0123#test",
        "python-docs": "demo:python-docs",
    }


def test_the_lengths_of_all_steps_count_one_copy_of_a_text(unspoilt_inputs, tmp_path):
    inputs = in_two_copies(unspoilt_inputs, tmp_path / "in")
    manifest = files.read_json(inputs["index"] / "manifest.json")
    assert manifest["settings"]["passage_length"] == 240
    retriever = Retriever.load(inputs["retriever"])
    assert tokens_of_all_copies(retriever, "query", 128) == 256
    assert tokens_of_all_copies(retriever, "query", None) is None
    assert fitting(retriever, 256, 257) == (512, None)
    assert retriever.card.tokens("query", -1) == -1
    assert Retriever.load(unspoilt_inputs["retriever"]).card.tokens("passage", 128) == 128


def test_queries_of_two_copies_are_cut_to_the_length_of_one(unspoilt_inputs, tmp_path):
    inputs = in_two_copies(unspoilt_inputs, tmp_path / "in")
    run(inputs, tmp_path, query_length=125, untuned_passages=0, precision="fp32")
    queries = Collection.open(inputs["collection"]).queries("graded")
    retriever = Retriever.load(inputs["retriever"], precision="fp32")
    kept = read_run(tmp_path / "evaluation" / "runs" / "graded" / "retriever.trec")
    passages = {p.id: p for p in Collection.open(inputs["collection"]).passages()}
    for query, vector in zip(queries, retriever.encode_queries(list(queries.values()), length=250), strict=True):
        best, score = next(iter(kept[query].items()))
        (passage,) = retriever.encode_passages([passages[best]], length=240)
        assert float(vector @ passage) == pytest.approx(score, abs=1e-5)


def test_a_run_that_names_merged_passages_is_read_by_those_that_were_kept(tmp_path):
    source = write_source(tmp_path / "in" / "source")
    rows = [json.loads(line) for line in (source / "corpus.jsonl").read_text().splitlines()]
    copies = [row | {"_id": f"copy-of-{row['_id']}"} for row in rows[20:24]]
    (source / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *copies]))
    preparation.prepare(CorpusSettings(uri=str(source)), tmp_path / "in" / "collection")
    corpus = Collection.open(tmp_path / "in" / "collection")
    rankings = {"q20": {"p1": 1.0, "copy-of-p20": 3.0, "p20": 2.0}, "q21": {"copy-of-p21": 1.0, "p3": 2.0}, "q22": {}}
    assert with_kept_ids(rankings, corpus) == {
        "q20": {"p1": 1.0, "p20": 3.0},
        "q21": {"p21": 1.0, "p3": 2.0},
        "q22": {},
    }
    bench = Bench(EvaluationSettings(splits="test", measures="mrr@10"), corpus, tmp_path / "runs")
    given = tmp_path / "in" / "theirs.trec"
    write_run(
        given, [(query, sorted(found.items(), key=lambda hit: -hit[1])) for query, found in rankings.items()], "x"
    )
    Baselines(EvaluationSettings(runs=f"theirs={given}"), {}).add([Task(bench)])
    scores = bench.splits[0].judged["theirs"].scores["mrr@10"]
    assert (scores["q20"], scores["q21"], scores["q22"]) == (1.0, 0.5, 0.0)
    write_run(given, [("q20", [("copy-of-p39", 1.0)])], "x")
    with pytest.raises(InputError, match=r"theirs\.trec:1: passage 'copy-of-p39' is not in the collection"):
        Baselines(EvaluationSettings(runs=f"theirs={given}"), {}).add([Task(bench)])
