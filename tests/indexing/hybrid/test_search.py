"""Hybrid search with a published version: what mining, evaluation and promotion leave behind for it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_retriever import files
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation.evaluate import evaluate
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.evaluation.hybrid import Hybrid
from llm_retriever.evaluation.systems import BM25Runs
from llm_retriever.indexing import search
from llm_retriever.indexing.build import build_index
from llm_retriever.indexing.hybrid.published import Published, published_in
from llm_retriever.indexing.hybrid.search import HybridSearcher
from llm_retriever.metrics.runs import read_run
from llm_retriever.mining.negatives import mine
from llm_retriever.promotion import promote
from llm_retriever.settings import CorpusSettings, EvaluationSettings, IndexSettings, MiningSettings, PromotionSettings
from llm_retriever.stores.opening import publish
from tests.conftest import write_beir
from tests.evaluation.conftest import unspoilt_inputs  # noqa: F401  (a fixture)
from tests.evaluation.test_evaluate import outputs

TOP = 10


@pytest.fixture(scope="module")
def run_directory(unspoilt_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run's folder: mined, indexed, evaluated on 100 queries of `dev`, and published; not to be changed."""
    run = tmp_path_factory.mktemp("run")
    source = write_beir(run / "source", 500)
    settings = CorpusSettings(uri=str(source), heldout_queries=100)
    keep_only_train(source)
    collection, index = run / "prepare-corpus" / "collection", run / "build-index" / "index"
    preparation.prepare(settings, collection)
    mined = (run / "mine-negatives" / name for name in ("training_set", "bm25_runs", "statistics.md", "picture.html"))
    mine(MiningSettings(depth=10, negatives=2, evaluation_depth=60), Collection.open(collection).directory, *mined)
    retriever = Path(shutil.copytree(unspoilt_inputs["retriever"], run / "tune-retriever" / "retriever"))
    build_index(retriever, collection, index, IndexSettings())
    inputs = unspoilt_inputs | {"collection": collection, "index": index, "retriever": retriever}
    inputs["bm25_runs"] = run / "mine-negatives" / "bm25_runs"
    evaluate(
        EvaluationSettings(depth=50, measures="ndcg@10", untuned_passages=0), **inputs, **outputs(run / "evaluate")
    )
    place = PromotionSettings(uri=str(run / "published"), first="any")
    uri, promoted = promote(place, run / "evaluate" / "evaluation", retriever, index, run / "decision.md")
    assert promoted
    (run / "version").symlink_to(uri)
    return run


def keep_only_train(source: Path) -> None:
    """All judgments of a BEIR directory as those of its split train, so that `dev` is drawn from it."""
    lines = [line for file in sorted((source / "qrels").iterdir()) for line in file.read_text().splitlines()[1:]]
    shutil.rmtree(source / "qrels")
    files.write_text(source / "qrels" / "train.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")


@pytest.fixture(scope="module")
def asked(run_directory: Path) -> dict[str, str]:
    return Collection.open(run_directory / "prepare-corpus" / "collection").queries("dev")


@pytest.fixture(scope="module")
def expected(run_directory: Path) -> dict[str, list[str]]:
    """The first passages of every query in the run that the evaluation kept."""
    run = read_run(run_directory / "evaluate" / "evaluation" / "runs" / "dev" / "hybrid.trec")
    return {query: list(ranking)[:TOP] for query, ranking in run.items()}


def command(arguments: list[str], questions: list[str], monkeypatch: Any, capsys: Any) -> list[list[str]]:
    """Passage ids that the command prints for every question."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(questions)))
    assert search.main([*arguments, "--hybrid", "--queries", "-", "--json", "--depth", str(TOP)]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [[result["id"] for result in answer["results"]] for answer in answers]


@pytest.mark.slow
def test_a_loaded_version_ranks_as_the_evaluation_did(run_directory, asked, expected):
    assert len(asked) == 100
    with HybridSearcher.load(run_directory / "version") as searcher:
        found = searcher.search(list(asked.values()), k=TOP)
        assert searcher.search([]) == []
        assert [list(dict(ranking)) for ranking in found] == list(expected.values())
        for ranking in found:
            scores = [score for _, score in ranking]
            assert scores == sorted(scores, reverse=True)
        assert len(searcher.search(["the of"], k=3)[0]) == 3  # BM25 finds nothing by stop words


@pytest.mark.slow
def test_the_command_ranks_as_the_evaluation_did(run_directory, asked, expected, monkeypatch, capsys):
    for place in (
        ["--version", f"{run_directory / 'version'}/"],
        ["--index", str(run_directory / "build-index" / "index")],
    ):
        assert command(place, list(asked.values()), monkeypatch, capsys) == list(expected.values())


@pytest.mark.slow
def test_a_version_in_a_bucket_is_searched_alike(run_directory, asked, expected, s3):
    uri = f"s3://{s3.bucket}/published/versions/v1"
    publish(run_directory / "version", uri)
    assert published_in(uri) == Published.load(run_directory / "version" / "evaluation" / "hybrid")
    with HybridSearcher.load(uri) as searcher:
        found = searcher.search(list(asked.values()), k=TOP)
    assert [list(dict(ranking)) for ranking in found] == list(expected.values())


def test_it_says_how_it_was_chosen_and_holds_no_texts(run_directory):
    evaluation = run_directory / "version" / "evaluation"
    told, chosen = Published.load(evaluation / "hybrid"), files.read_json(evaluation / "evaluation.json")["hybrid"]
    assert (told.fusion.kind, told.fusion.weight) == (chosen["fusion"], chosen["weight"])
    assert (told.depth, told.bm25_depth, told.bm25) == (50, 60, {"k1": 0.9, "b": 0.4})
    kept = sorted(path.name for path in (evaluation / "hybrid" / "lucene").iterdir())
    assert kept == [row["name"] for row in told.files]
    assert not {".pos", ".tvd", ".lock"} & {Path(name).suffix for name in kept}
    text = next(iter(Collection.open(run_directory / "prepare-corpus" / "collection").passages())).text
    assert not any(text.encode() in path.read_bytes() for path in (evaluation / "hybrid" / "lucene").iterdir())


@pytest.fixture
def copy(run_directory: Path, tmp_path: Path) -> Path:
    """A version to spoil."""
    return Path(shutil.copytree(run_directory / "version", tmp_path / "version"))


def test_a_damaged_index_of_lucene_is_refused(copy):
    file = max((copy / "evaluation" / "hybrid" / "lucene").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(InputError, match="does not have the checksum"):
        HybridSearcher.load(copy)


@pytest.mark.parametrize("field", ["card", "collection"])
def test_what_belongs_to_another_retriever_or_collection_is_refused(field, copy):
    path = copy / "evaluation" / "hybrid" / "hybrid.json"
    files.write_json(path, files.read_json(path) | {field: "f" * 64})
    with pytest.raises(InputError, match="is of another"):
        HybridSearcher.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 2},
        {"fusion": "sum"},
        {"bm25": {}},
        {"depth": 0},
        {"format": 9},
        {"files": None},
        {"files": [{"name": "_0.cfs"}]},
        {"query_length": "long"},
    ],
)
def test_what_does_not_say_how_to_search_is_refused(change, copy):
    path = copy / "evaluation" / "hybrid" / "hybrid.json"
    files.write_json(path, files.read_json(path) | change)
    with pytest.raises(InputError, match="does not say how to search"):
        published_in(str(copy))


def test_a_version_without_it_is_told(copy, capsys):
    shutil.rmtree(copy / "evaluation" / "hybrid")
    assert published_in(str(copy)) is None
    assert search.main(["--version", str(copy), "--hybrid", "a question"]) == 2
    assert "does not lie beside this index" in capsys.readouterr().err
    with pytest.raises(InputError):
        HybridSearcher.load(copy)


def test_a_damaged_index_beside_the_runs_is_not_evaluated(run_directory, tmp_path):
    runs = Path(shutil.copytree(run_directory / "mine-negatives" / "bm25_runs", tmp_path / "runs"))
    next((runs / "lucene").glob("*.tim")).write_bytes(b"something else")
    corpus = Collection.open(run_directory / "prepare-corpus" / "collection")
    bench = Bench(EvaluationSettings(depth=50), corpus, tmp_path / "out")
    with pytest.raises(InputError, match="does not have the checksum"):
        Hybrid(bench, BM25Runs(runs, corpus), tmp_path)


def test_a_damaged_evaluation_is_not_promoted(run_directory, tmp_path):
    evaluation = Path(shutil.copytree(run_directory / "evaluate" / "evaluation", tmp_path / "evaluation"))
    next((evaluation / "hybrid" / "lucene").glob("segments_*")).unlink()
    place = PromotionSettings(uri=str(tmp_path / "published"), first="any")
    inputs = run_directory / "tune-retriever" / "retriever", run_directory / "build-index" / "index"
    with pytest.raises(InputError, match="is missing"):
        promote(place, evaluation, *inputs, tmp_path / "decision.md")
    assert not (tmp_path / "published").exists()
