"""The step `prepare_corpus` as Kubeflow and people start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.prepare_corpus.__main__ import STEP
from llm_retriever.data.collection import Collection


def arguments(source: Path, directory: Path, *more: str) -> list[str]:
    outputs = ["--collection", str(directory / "collection"), "--statistics", str(directory / "statistics.md")]
    return ["--uri", str(source), *outputs, *more]


def test_the_step_by_hand_writes_the_collection_and_tells_about_it(beir_source: Path, tmp_path: Path) -> None:
    assert STEP.execute(arguments(beir_source, tmp_path / "out")) == 0
    made = Collection.open(tmp_path / "out" / "collection")
    statistics = (tmp_path / "out" / "statistics.md").read_text()
    assert "60 passages, 60 queries, 60 judgments." in statistics
    assert "| train | 42 | 42 | 1.00 |" in statistics
    assert made.fingerprint in statistics


def test_statistics_tell_what_was_changed(beir_source: Path, tmp_path: Path) -> None:
    corpus = beir_source / "corpus.jsonl"
    first = json.loads(corpus.read_text().splitlines()[0])
    corpus.write_text(corpus.read_text() + json.dumps({**first, "_id": "copy"}) + "\nbroken\n")
    assert STEP.execute(arguments(beir_source, tmp_path, "--max-bad-lines", "1")) == 0
    statistics = (tmp_path / "statistics.md").read_text()
    assert "- 1 passages merged into one of the same title and text" in statistics
    assert "- 1 bad lines set aside in `bad_lines.jsonl`" in statistics


def test_the_step_under_kubeflow_answers_with_fingerprint_and_counts(beir_source: Path, tmp_path: Path) -> None:
    artifacts = {
        name: {"artifacts": [{"name": name, "uri": str(tmp_path / "run" / name), "metadata": {}}]}
        for name in ("collection", "statistics")
    }
    message = {
        "inputs": {"parameterValues": {"uri": str(beir_source), "sample_seed": 3}},
        "outputs": {"outputFile": str(tmp_path / "run" / "output.json"), "artifacts": artifacts},
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "run" / "output.json").read_text())
    made = Collection.open(tmp_path / "run" / "collection")
    metadata = answer["artifacts"]["statistics"]["artifacts"][0]["metadata"]
    assert metadata == {"passages": 60, "queries": 60, "judgments": 60, "fingerprint": made.fingerprint}


def test_bad_input_ends_the_process_with_exit_code_2_and_one_line(beir_source: Path, tmp_path: Path) -> None:
    corpus = beir_source / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace('"text": "The poem', '"body": "The poem', 1))
    command = [sys.executable, "-m", "components.prepare_corpus", *arguments(beir_source, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == (
        f'prepare_corpus: {corpus}:3: field "text": the field is missing; add it; the record has _id, body, title'
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "collection").exists()
    assert not (tmp_path / "out" / "statistics.md").exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--uri", "demo:cats"], "there is no demo 'demo:cats'"),
        (["--uri", "/nowhere/at/all"], "no such directory"),
        (["--format", "parquet"], "'parquet' is refused"),
        (["--max-bad-lines", "-1"], "'-1' is refused"),
    ],
)
def test_what_is_not_known_is_refused_with_exit_code_2(
    beir_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    assert STEP.execute(arguments(beir_source, tmp_path, *flags)) == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "collection").exists()
