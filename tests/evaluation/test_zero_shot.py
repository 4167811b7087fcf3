from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest

from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.evaluation.zero_shot import ZeroShot, chosen, split_off
from llm_retriever.metrics.measures import means, parse_measures, score_queries
from llm_retriever.metrics.runs import read_run
from llm_retriever.promotion import measured
from llm_retriever.settings import CorpusSettings, EvaluationSettings
from tests.conftest import write_beir
from tests.evaluation.conftest import write_source
from tests.evaluation.test_evaluate import SETTINGS, refused, run


def sources(directory):
    """A collection with a query that is a passage, and a directory of two collections, as the setting names them."""
    write_beir(directory / "letters", 20)  # not among them
    write_source(directory / "stance")
    for number, part in enumerate(("android", "english")):
        write_beir(directory / "forums" / part, 15 + 5 * number, train_share=0.5)
    (directory / "forums" / "notes").mkdir()
    return f"{directory / 'stance'}#test, cqa={directory / 'forums'}"


@pytest.fixture(scope="module")
def evaluated(unspoilt_inputs, tmp_path_factory):
    """An evaluation with three zero-shot splits and BM25 beside the retriever; not to be changed."""
    directory = tmp_path_factory.mktemp("zero-shot")
    zero_shot = sources(directory / "sources")
    metrics, content = run(unspoilt_inputs, directory, zero_shot=zero_shot, untuned_passages=0)
    return metrics, content, directory


PARTS = ["cqa/android/test", "cqa/english/test"]


def test_every_collection_is_a_split_behind_those_of_the_run_itself(evaluated):
    _, content, directory = evaluated
    assert list(content["splits"]) == ["graded", "test", "stance/test", *PARTS]
    told = [split.get("zero_shot") for split in content["splits"].values()]
    assert told == [None, None, "stance", "cqa", "cqa"]
    assert all(list(split["systems"]) == ["retriever", "hybrid", "BM25"] for split in content["splits"].values())
    assert (directory / "evaluation" / "runs" / "cqa" / "english" / "test" / "BM25.trec").exists()
    assert "stance/test" in (directory / "report.html").read_text()


def test_the_retriever_reads_zero_shot_texts_at_their_own_length(unspoilt_inputs, evaluated, tmp_path):
    source = evaluated[2] / "sources" / "forums" / "english"
    preparation.prepare(CorpusSettings(uri=str(source), heldout_queries=0), tmp_path / "english")
    corpus = Collection.open(tmp_path / "english")
    retriever = Retriever.load(unspoilt_inputs["retriever"], precision="fp32")
    queries, passages = corpus.queries("test"), list(corpus.passages())
    scores = (
        retriever.encode_queries(list(queries.values()), length=512) @ retriever.encode_passages(passages, length=512).T
    )
    found = read_run(evaluated[2] / "evaluation" / "runs" / "cqa" / "english" / "test" / "retriever.trec")
    for row, query in enumerate(queries):
        best = np.sort(scores[row])[::-1]
        assert list(found[query].values()) == pytest.approx(best.tolist(), abs=1e-5)


@pytest.mark.parametrize("system", ["retriever", "BM25"])
def test_a_passage_with_the_id_of_the_query_is_left_out_and_replaced_for_every_system(system, evaluated):
    kept = read_run(evaluated[2] / "evaluation" / "runs" / "stance" / "test" / f"{system}.trec")
    assert "p39" not in kept["p39"]
    # The whole text of the passage is the query, so that every system has it on top, and 20 others behind it.
    assert len(kept["p39"]) == SETTINGS.depth


def test_a_directory_of_collections_counts_as_one_with_the_mean_of_its_parts(evaluated):
    metrics, content, _ = evaluated
    told = content["zero_shot"]["collections"]["cqa"]
    assert (told["parts"], told["splits"], told["passages"]) == (2, PARTS, 35)
    for system in ("retriever", "BM25"):
        values = [content["splits"][part]["systems"][system]["ndcg@10"] for part in PARTS]
        assert told["systems"][system]["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert metrics["cqa_ndcg_at_10"] == pytest.approx(told["systems"]["retriever"]["ndcg@10"])


def test_collections_that_are_named_as_parts_count_as_one(unspoilt_inputs, evaluated, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    forums = evaluated[2] / "sources" / "forums"
    parts = ",".join(f"cqa/{name}={forums / name}" for name in ("android", "english"))
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=parts, untuned_passages=0)
    told, before = (c["zero_shot"]["collections"]["cqa"] for c in (content, evaluated[1]))
    assert told["splits"] == before["splits"] == PARTS
    assert told["systems"]["retriever"] == before["systems"]["retriever"]
    assert told["source"] == f"{forums}/android, {forums}/english"


def test_the_sum_up_is_the_unweighted_mean_over_the_collections(evaluated):
    metrics, content, _ = evaluated
    collections = content["zero_shot"]["collections"]
    for system in ("retriever", "BM25"):
        values = [collections[name]["systems"][system]["ndcg@10"] for name in ("stance", "cqa")]
        assert content["zero_shot"]["mean"][system]["ndcg@10"] == pytest.approx(sum(values) / 2)
    assert content["zero_shot"]["bm25"]["k1"] == 0.9
    assert metrics["zero_shot_ndcg_at_10_bm25"] == content["zero_shot"]["mean"]["BM25"]["ndcg@10"]
    assert {"stance_test_ndcg_at_10", "cqa_android_test_mrr_at_10_bm25"} <= metrics.keys()


def test_the_values_are_those_of_the_runs_that_are_kept(evaluated):
    _, content, directory = evaluated
    qrels = {}
    for line in (directory / "sources" / "forums" / "english" / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, passage, grade = line.split("\t")
        qrels.setdefault(query, {})[passage] = int(grade)
    kept = read_run(directory / "evaluation" / "runs" / "cqa" / "english" / "test" / "BM25.trec")
    expected = means(score_queries(parse_measures(SETTINGS.measures), qrels, kept))
    assert content["splits"][PARTS[1]]["systems"]["BM25"] == pytest.approx(expected)


def test_every_collection_has_a_fingerprint_of_its_own(evaluated):
    _, content, _ = evaluated
    prints = [split["collection"] for split in content["splits"].values()]
    assert prints[:2] == [content["collection"]] * 2
    # The collection "stance" is made of the run's own source.
    assert len(set(prints)) == 3


def test_promotion_compares_a_zero_shot_split_only_with_the_same_collection(evaluated):
    _, content, directory = evaluated
    found = measured(content, PARTS[1], "ndcg@10", directory)
    assert found.place == (content["splits"][PARTS[1]]["collection"], PARTS[1], 10)
    assert measured(content, "test", "ndcg@10", directory).place[0] == content["collection"]


def test_without_lucene_bm25_is_left_out_which_is_noted(unspoilt_inputs, evaluated, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    source = str(evaluated[2] / "sources" / "letters")
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=source, untuned_passages=0)
    assert list(content["splits"]["letters/test"]["systems"]) == ["retriever"]
    assert (
        "BM25 was not run on the zero-shot collections: pyserini is not installed (extra [mine])." in content["notes"]
    )
    assert list(content["zero_shot"]["mean"]) == ["retriever"]
    assert "bm25" not in content["zero_shot"]


def test_a_length_that_the_model_cannot_read_becomes_that_of_training_which_is_noted(
    unspoilt_inputs, evaluated, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    source = str(evaluated[2] / "sources" / "letters")
    changes = {"zero_shot": source, "untuned_passages": 0, "zero_shot_query_length": -1}
    _, content = run(unspoilt_inputs, tmp_path, zero_shot_passage_length=4096, **changes)
    assert any("cut as in training" in note for note in content["notes"])
    assert content["zero_shot"]["query_length"] is None


def test_the_measure_of_beir_is_taken_where_the_settings_lack_it(unspoilt_inputs, evaluated, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    source = str(evaluated[2] / "sources" / "letters")
    changes = {"measures": "mrr@10", "primary_metric": "mrr@10", "untuned_passages": 0}
    metrics, content = run(unspoilt_inputs, tmp_path, zero_shot=source, **changes)
    assert content["measures"] == ["mrr@10", "ndcg@10"]
    assert metrics["zero_shot_ndcg_at_10"] == content["zero_shot"]["mean"]["retriever"]["ndcg@10"]


def test_unusable_lines_are_tolerated_on_demand_and_counted(unspoilt_inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    source = write_beir(tmp_path / "in" / "letters", 20)
    with (source / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "empty", "title": ""}) + "\n")
    assert "corpus.jsonl" in refused(unspoilt_inputs, tmp_path, zero_shot=str(source), untuned_passages=0)
    changes = {"zero_shot": str(source), "zero_shot_max_bad_lines": 1, "untuned_passages": 0}
    _, content = run(unspoilt_inputs, tmp_path, **changes)
    assert "1 unusable lines of letters were left out (bad_lines.jsonl)." in content["notes"]
    assert content["zero_shot"]["collections"]["letters"]["passages"] == 20


def test_passages_without_text_are_left_out_with_their_judgments_which_is_noted(unspoilt_inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    source = write_beir(tmp_path / "in" / "letters", 20)
    with (source / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps({"_id": "empty", "title": "", "text": " "}) + "\n")
        corpus.write(json.dumps({"_id": "titled", "title": "A title", "text": ""}) + "\n")
    judged = (source / "qrels" / "test.tsv").read_text()
    query = judged.splitlines()[1].split("\t")[0]
    (source / "qrels" / "test.tsv").write_text(f"{judged}{query}\tempty\t1\n")
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=str(source), untuned_passages=0)
    assert "1 passages of letters without any text were left out, and so were their judgments." in content["notes"]
    assert content["zero_shot"]["collections"]["letters"]["passages"] == 21
    assert content["splits"]["letters/test"]["judgments"] == len(judged.splitlines()) - 1


def test_what_is_wrong_with_the_last_collection_shows_before_anything_is_encoded(
    unspoilt_inputs, evaluated, tmp_path, monkeypatch
):
    forums = evaluated[2] / "sources" / "forums"
    bad = write_beir(tmp_path / "in" / "bad", 20)
    (bad / "queries.jsonl").write_text("no JSON\n")
    zero_shot = ZeroShot(EvaluationSettings(zero_shot=f"{forums}/english,{bad}"), [])
    with pytest.raises(InputError, match="not valid JSON"):
        zero_shot.prepare(tmp_path / "scratch")
    zero_shot = ZeroShot(EvaluationSettings(zero_shot=str(forums)), [])
    zero_shot.prepare(tmp_path / "scratch")
    assert [name for name, queries in zero_shot.judged() if queries] == [
        f"forums/{p}/test" for p in ("android", "english")
    ]


def test_a_run_of_a_single_file_is_not_that_of_a_zero_shot_collection(
    unspoilt_inputs, evaluated, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    one = f"one={unspoilt_inputs['bm25_runs']}/test.trec"
    source = f"stance={evaluated[2] / 'sources' / 'stance'}"  # of the same query ids
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=source, runs=one, untuned_passages=0)
    assert "one" in content["splits"]["test"]["systems"]
    assert "one" not in content["splits"]["stance/test"]["systems"]
    assert not [note for note in content["splits"]["stance/test"]["notes"] if "one" in note.split()]


def test_passages_with_the_same_text_are_not_merged(unspoilt_inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    source = write_beir(tmp_path / "in" / "letters", 20)
    first = (source / "corpus.jsonl").read_text().splitlines()[0]
    with (source / "corpus.jsonl").open("a") as corpus:
        corpus.write(json.dumps(json.loads(first) | {"_id": "twin"}) + "\n")
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=str(source), untuned_passages=0)
    assert content["zero_shot"]["collections"]["letters"]["passages"] == 21


def test_the_runs_of_an_earlier_evaluation_are_baselines_also_of_zero_shot_collections(
    unspoilt_inputs, evaluated, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    _, before, directory = evaluated
    earlier = f"earlier={directory}/evaluation/runs/{{split}}/retriever.trec"
    source = f"cqa={directory}/sources/forums"
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=source, runs=earlier, untuned_passages=0)
    for split in ("test", *PARTS):
        (comparison,) = [c for c in content["splits"][split]["comparisons"] if c["baseline"] == "earlier"]
        assert comparison["mean_difference"] == 0.0
        assert content["splits"][split]["systems"]["earlier"] == before["splits"][split]["systems"]["retriever"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("/nowhere/at/all", '/nowhere/at/all: field "zero_shot": no such directory'),
        ("{letters},letters={letters}", "'letters' is taken"),
        ("test={letters}", "'test' is taken"),
        ("zero-shot={letters}", "'zero-shot' is taken"),
        ("{letters}#dev", "the collection has no split 'dev'"),
    ],
)
def test_a_collection_that_cannot_be_used_is_refused(
    setting, message, unspoilt_inputs, evaluated, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyserini", None)
    setting = setting.replace("{letters}", str(evaluated[2] / "sources" / "letters"))
    assert message in refused(unspoilt_inputs, tmp_path, zero_shot=setting, untuned_passages=0)


def test_a_directory_that_is_no_collection_is_refused_with_the_layouts(unspoilt_inputs, tmp_path):
    (tmp_path / "in" / "nothing").mkdir(parents=True)
    message = refused(unspoilt_inputs, tmp_path, zero_shot=str(tmp_path / "in" / "nothing"), untuned_passages=0)
    assert "the layout is none of those known" in message


def test_collections_on_s3_are_fetched(unspoilt_inputs, evaluated, tmp_path, monkeypatch, s3):
    from llm_retriever.stores.opening import open_store

    monkeypatch.setitem(sys.modules, "pyserini", None)
    uri = f"s3://{s3.bucket}/forums"
    open_store(uri).upload(evaluated[2] / "sources" / "forums")
    _, content = run(unspoilt_inputs, tmp_path, zero_shot=uri, untuned_passages=0)
    told = content["zero_shot"]["collections"]["forums"]
    assert (told["source"], told["splits"]) == (uri, ["forums/android/test", "forums/english/test"])
    before = evaluated[1]["splits"][PARTS[0]]["per_query"]["retriever"]
    assert content["splits"]["forums/android/test"]["per_query"]["retriever"] == before


def test_a_split_is_split_off_behind_the_last_number_sign():
    assert split_off("hf://datasets/BeIR/scifact@main#test") == ("hf://datasets/BeIR/scifact@main", "test")
    assert split_off("/data/c#/beir") == ("/data/c#/beir", "")
    assert split_off("demo:python-docs") == ("demo:python-docs", "")


def test_without_a_wish_test_is_taken_then_all_but_train_then_all(collection_directory, tmp_path):
    corpus = Collection.open(shutil.copytree(collection_directory, tmp_path / "copy"))
    assert chosen(corpus, "") == ["test"]
    assert chosen(corpus, "train") == ["train"]
    for splits, expected in ((["train", "dev"], ["dev"]), (["train"], ["train"])):
        manifest = json.loads((tmp_path / "copy" / "collection.json").read_text())
        manifest["splits"] = {name: {"queries": 1, "judgments": 1} for name in splits}
        (tmp_path / "copy" / "collection.json").write_text(json.dumps(manifest))
        assert chosen(Collection.open(tmp_path / "copy"), "") == expected


def test_no_collections_leave_nothing_behind():
    empty = ZeroShot(EvaluationSettings(), ["test"])
    assert (empty.content(), empty.splits, empty.notes) == ({}, {}, [])


def test_a_name_without_letters_is_refused():
    with pytest.raises(InputError, match="has no name"):
        ZeroShot(EvaluationSettings(zero_shot="./"), [])
