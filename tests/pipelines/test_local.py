"""The compiled pipeline on this machine: every real step at the smallest size, the cache, and failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_retriever.files import layouts
from pipelines.choice import chosen
from pipelines.local import run_compiled
from pipelines.rerun import from_run
from tests.conftest import write_backbone, write_beir

ROOT = Path(__file__).parents[2]
SMALL = {
    "adapt_method": "ql",
    "adapt_batch_size": 8,
    "adapt_micro_batch_size": 8,
    "adapt_max_steps": 3,
    "tune_batch_size": 8,
    "tune_micro_batch_size": 8,
    "tune_max_steps": 3,
    "tune_passages_per_query": 3,
    "tune_query_length": 160,
    "tune_passage_length": 200,
    "adapt_passage_length": 200,
    "mine_depth": 20,
    "run_precision": "fp32",
}
SHALLOW = {"eval_depth": 30, "eval_measures": "mrr@10,ndcg@10,recall@30", "promote_first": "any"}
"""Less than the 60 passages of the corpus, so that more can be asked for."""


def run_local(root: Path, **parameters: Any) -> subprocess.CompletedProcess[str]:
    given = [f"{name}={value}" for name, value in {**SMALL, **SHALLOW, **parameters}.items()]
    command = [sys.executable, "-m", "pipelines", "run-local", "--root", str(root), *given]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    return {"corpus_uri": write_beir(root / "corpus"), "backbone": write_backbone(root / "backbone")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def first(root: Path, sources: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    return run_local(root, **sources)


def test_the_whole_pipeline_runs_and_publishes(first: subprocess.CompletedProcess[str], root: Path) -> None:
    assert first.returncode == 0, first.stderr[-3000:]
    for number, step in enumerate(("fingerprint_sources", "prepare_corpus"), 1):
        assert f"[{number}/9] {step}: done in " in first.stderr
    assert "[9/9] promote: done in " in first.stderr
    assert f"report: {root / 'report.html'}" in first.stdout
    assert (root / "report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    alias = json.loads((root / "published" / "production.json").read_text())
    assert alias


def test_the_evaluation_compares_the_retriever_with_bm25_and_the_backbone(
    first: subprocess.CompletedProcess[str], root: Path
) -> None:
    [path] = root.glob("runs/*/evaluate/evaluation/evaluation.json")
    evaluation = json.loads(path.read_text())
    systems = evaluation["splits"]["test"]["systems"]
    assert {"retriever", "BM25", "backbone"} <= set(systems)
    assert 0 < systems["BM25"]["ndcg@10"] <= 1
    assert systems["retriever"]["ndcg@10"] != systems["backbone"]["ndcg@10"]


def test_every_output_of_the_run_is_known_as_one_that_may_be_replaced(
    first: subprocess.CompletedProcess[str], root: Path
) -> None:
    checked = []
    for told in root.glob("runs/*/*/executor_input.json"):
        for name in json.loads(told.read_text())["outputs"].get("artifacts", {}):
            layouts.OUTPUTS[name].check(told.with_name(name))
            checked.append(name)
    assert {"collection", "backbone", "training_set", "adapted", "retriever", "index", "evaluation"} <= set(checked)


def evaluated(folder: Path) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """What `evaluate` wrote in a run: its results, and how many passages each query has in each system's run."""
    told = json.loads((folder / "evaluate" / "evaluation" / "evaluation.json").read_text())
    runs = {}
    for path in (path for path in (folder / "evaluate" / "evaluation" / "runs").rglob("*") if path.is_file()):
        queries = [line.split()[0] for line in path.read_text().splitlines()]
        runs[path.name] = sorted({query: queries.count(query) for query in queries}.values())
    return told, runs


@pytest.mark.slow
def test_evaluation_alone_is_rerun_with_another_depth(
    first: subprocess.CompletedProcess[str], root: Path, tmp_path: Path
) -> None:
    assert first.returncode == 0, first.stderr[-3000:]
    [before] = root.glob("runs/train-retriever-*")
    command = [sys.executable, "-m", "pipelines", "rerun", "evaluate", "--from-run", str(before)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    again = subprocess.run(
        [*command, "--root", str(tmp_path), "eval_depth=60"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert [line.split()[1] for line in again.stderr.splitlines() if ": done in " in line] == ["evaluate:"]
    [after] = tmp_path.glob("runs/rerun-evaluate-*")
    assert [path.name for path in after.iterdir()] == ["evaluate"]
    assert f"outputs: {after}" in again.stdout
    check_deeper(evaluated(before), evaluated(after))


def check_deeper(before: tuple[Any, Any], after: tuple[Any, Any]) -> None:
    """That 60 passages a query instead of 30 change the runs, and nothing that looks at the first 30 alone."""
    (told, runs), (told_again, runs_again) = before, after
    assert (told["depth"], told_again["depth"]) == (30, 60)
    same = told.keys() - {"depth", "costs", "efficiency", "checksum", "splits"}  # costs are measured
    assert told.keys() == told_again.keys()
    assert {name: told_again[name] for name in same} == {name: told[name] for name in same}
    for name, split in told["splits"].items():
        for system in split["systems"].keys() - {"hybrid"}:  # Fusion looks at all that was found.
            assert told_again["splits"][name]["systems"][system] == split["systems"][system]
            assert told_again["splits"][name]["per_query"][system] == split["per_query"][system]
        assert told_again["splits"][name]["comparisons"] == split["comparisons"]
    assert runs_again.keys() == runs.keys()
    for name, counts in runs.items():
        assert max(counts) == 30, name
        assert max(runs_again[name]) > 30, name


@pytest.mark.slow
def test_the_compiled_rerun_pipeline_does_the_same(
    first: subprocess.CompletedProcess[str], root: Path, tmp_path: Path
) -> None:
    [before] = root.glob("runs/train-retriever-*")
    package = tmp_path / "rerun_evaluate.yaml"
    compiling = [sys.executable, "-m", "pipelines", "compile", "rerun_evaluate", "--output", str(package)]
    subprocess.run(compiling, check=True, cwd=ROOT, capture_output=True)
    given = chosen("rerun_evaluate", from_run("evaluate", str(before)) | {"eval_depth": 60}).told.form
    run = run_compiled(package, given, tmp_path)
    assert (run.exit_code, [record.name for record in run.records]) == (0, ["evaluate"])
    assert run.folder
    check_deeper(evaluated(before), evaluated(run.folder))


@pytest.mark.slow
def test_a_second_run_takes_unchanged_steps_from_the_cache(
    first: subprocess.CompletedProcess[str], root: Path, sources: dict[str, Path]
) -> None:
    second = run_local(root, **sources)
    assert second.returncode == 0, second.stderr[-3000:]
    cached = [line.split()[1].rstrip(":") for line in second.stderr.splitlines() if "taken from the cache" in line]
    assert sorted(cached) == sorted(
        [
            "prepare_corpus",
            "fetch_backbone",
            "mine_negatives",
            "adapt_backbone",
            "tune_retriever",
            "build_index",
            "evaluate",
        ]
    )


@pytest.mark.slow
def test_a_changed_parameter_runs_only_what_depends_on_it(
    first: subprocess.CompletedProcess[str], root: Path, sources: dict[str, Path]
) -> None:
    third = run_local(root, **sources, eval_untuned_passages=0)
    ran = [line.split()[1].rstrip(":") for line in third.stderr.splitlines() if ": done in " in line]
    assert ran == ["fingerprint_sources", "evaluate", "promote"]


@pytest.mark.slow
def test_parts_are_encoded_beside_each_other_into_the_same_index(
    first: subprocess.CompletedProcess[str], root: Path, sources: dict[str, Path]
) -> None:
    together = [np.load(path) for path in sorted(root.glob("runs/*/build-index/index/vectors-*.npy"))]
    shards = root / "shards"
    own = {"index_parts": 2, "index_shards_uri": shards, "index_shard_passages": 20, "eval_untuned_passages": 0}
    fourth = run_local(root, **sources, **own)
    assert fourth.returncode == 0, fourth.stderr[-3000:]
    ran = [line.split()[1].rstrip(":") for line in fourth.stderr.splitlines() if ": done in " in line]
    assert ran == ["fingerprint_sources", "encode_corpus", "encode_corpus", "build_index", "evaluate", "promote"]
    parts = [json.loads(path.read_text()) for path in root.glob("runs/**/encode-corpus/encoded/part.json")]
    assert sorted((part["part"], list(part["shards"])) for part in parts) == [(0, ["0", "2"]), (1, ["1"])]
    apart = np.concatenate([np.load(path) for path in sorted(shards.glob("*/vectors-*.npy"))])
    assert apart.tobytes() == together[0].tobytes()

    again = run_local(root, **sources, **own)
    cached = [line.split()[1].rstrip(":") for line in again.stderr.splitlines() if "taken from the cache" in line]
    assert cached.count("encode_corpus") == 2
    assert "build_index" in cached


@pytest.mark.slow
def test_parts_without_a_place_are_refused_before_anything_starts(root: Path, sources: dict[str, Path]) -> None:
    refused = run_local(root, **sources, index_parts=2)
    assert refused.returncode == 2
    assert "index_shards_uri" in refused.stderr
    assert "fingerprint_sources" not in refused.stderr


@pytest.mark.slow
def test_a_changed_source_is_noticed_and_bad_input_fails_the_run(
    first: subprocess.CompletedProcess[str], root: Path, sources: dict[str, Path]
) -> None:
    corpus = sources["corpus_uri"] / "corpus.jsonl"
    original = corpus.read_text()
    corpus.write_text(original + "not json\n")
    try:
        failed = run_local(root, **sources)
    finally:
        corpus.write_text(original)
    assert failed.returncode == 2
    assert f"corpus.jsonl:{original.count(chr(10)) + 1}" in failed.stderr
    assert "prepare_corpus: stopped by bad input" in failed.stderr
    assert "mine_negatives" not in failed.stderr
