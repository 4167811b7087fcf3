"""The pipeline to be scheduled, on this machine: nothing new, a few new documents, and a source that spoils the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_retriever.stores.registry import Registry
from pipelines.__main__ import main
from pipelines.choice import choose
from pipelines.retrain import NOT_IN_RECIPE, RECIPE
from pipelines.train_retriever import FORM
from tests.conftest import write_backbone, write_beir

ROOT = Path(__file__).parents[2]
NEW = [{"_id": f"new{i}", "title": "", "text": f"A copper kettle number {i} was left on the stove."} for i in range(10)]
LEARNING = {
    "adapt_method": "none",
    "tune_weights": "full",
    "tune_batch_size": 16,
    "tune_micro_batch_size": 16,
    "tune_max_steps": 30,
    "tune_learning_rate": 1e-3,
    "tune_temperature": 0.05,
    "tune_passages_per_query": 4,
    "tune_query_length": 160,
    "tune_passage_length": 200,
    "mine_depth": 20,
    "eval_untuned_passages": 0,
    "promote_first": "any",
    "run_precision": "fp32",
}


class Nightly:
    """A schedule's runs over one source, one after the other."""

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, write_beir(root / "corpus", 120, 0.6)
        self.backbone = write_backbone(root / "backbone")
        self.registry = Registry(str(root / "build" / "published"))

    def run(self, **parameters: Any) -> subprocess.CompletedProcess[str]:
        given = {**LEARNING, "corpus_uri": self.source, "backbone": self.backbone, **parameters}
        command = [sys.executable, "-m", "pipelines", "run-local", "--root", str(self.root / "build"), "retrain"]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
        ended = subprocess.run(
            [*command, *(f"{name}={value}" for name, value in given.items())],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended

    def evaluation(self) -> Any:
        """What the latest evaluation found."""
        found = self.root.glob("build/runs/**/evaluate/evaluation/evaluation.json")
        return json.loads(max(found, key=lambda path: path.stat().st_mtime).read_text())

    def add_documents(self) -> None:
        with (self.source / "corpus.jsonl").open("a") as corpus:
            corpus.writelines(json.dumps(row) + "\n" for row in NEW)

    def spoil_judgments(self) -> None:
        """Every training query is told to find another query's passage."""
        path = self.source / "qrels" / "train.tsv"
        head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        passages = [row[1] for row in rows]
        wrong = [
            (query, passage, grade)
            for (query, _, grade), passage in zip(rows, passages[7:] + passages[:7], strict=True)
        ]
        path.write_text("".join("\t".join(row) + "\n" for row in [head, *wrong]))


def steps(ended: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split()[1].rstrip(":") for line in ended.stderr.splitlines() if ": done in " in line]


@pytest.fixture(scope="module")
def nightly(tmp_path_factory: pytest.TempPathFactory) -> Nightly:
    return Nightly(tmp_path_factory.mktemp("nightly"))


@pytest.mark.slow
def test_three_nights_nothing_new_ten_documents_and_a_spoilt_source(nightly: Nightly) -> None:
    first = nightly.run()
    assert steps(first)[0] == "fingerprint_sources"
    assert steps(first)[-1] == "promote"
    version = nightly.registry.production()
    assert version is not None
    assert nightly.evaluation()["splits"]["test"]["systems"]["retriever"]["ndcg@10"] > 0.4

    unchanged = nightly.run()
    assert steps(unchanged) == ["fingerprint_sources"]
    assert "cache" not in unchanged.stderr
    assert "Nothing has changed" in unchanged.stdout
    assert nightly.registry.production() == version

    nightly.add_documents()
    grown = nightly.run()
    assert "tune_retriever" in steps(grown)
    evaluation = nightly.evaluation()
    assert (evaluation["production"]["encoded"], evaluation["production"]["reused"]) == (10, 120)
    judged = evaluation["splits"]["test"]["systems"]
    assert {"retriever", "production"} <= set(judged)
    assert [c["baseline"] for c in evaluation["splits"]["test"]["comparisons"]].count("production") == 1
    after = nightly.registry.production()
    assert after is not None
    assert after != version
    manifest = nightly.registry.store.read(f"{after.key}/index/manifest.json")
    assert json.loads(manifest)["count"] == 130

    nightly.spoil_judgments()
    spoilt = nightly.run()
    assert spoilt.stdout.count("Kept") == 1
    evaluation = nightly.evaluation()
    judged = evaluation["splits"]["test"]["systems"]
    assert judged["retriever"]["ndcg@10"] < judged["production"]["ndcg@10"] - 0.2
    decision = (nightly.root / "build" / "decision.md").read_text()
    assert "Kept" in decision
    assert f"{judged['retriever']['ndcg@10']:.4f}" in decision
    assert f"{judged['production']['ndcg@10']:.4f}" in decision
    still = nightly.registry.production()
    assert still is not None
    assert still.card == after.card

    assert steps(nightly.run()) == ["fingerprint_sources"], "a source that was judged is not judged again"


def test_a_place_of_published_versions_is_required_but_for_a_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "retrain", "--endpoint", "http://127.0.0.1:1"]) == 2
    assert 'field "promote_uri": retraining needs published versions to compare with' in capsys.readouterr().err
    target = tmp_path / "retrain.yaml"
    assert main(["compile", "retrain", "--output", str(target)]) == 0
    form = next(yaml.safe_load_all(target.read_text()))["root"]["inputDefinitions"]["parameters"]
    assert form["promote_uri"]["defaultValue"] == ""
    assert len(form[RECIPE]["defaultValue"]) == 64


@pytest.mark.slow
def test_the_recipe_tells_apart_what_changes_the_result_and_not_what_it_costs() -> None:
    def recipe(*words: str) -> str:
        return str(choose(["retrain", "promote_uri=s3://bucket/published", *words]).told.form[RECIPE])

    plain = recipe()
    assert recipe("index_gpus=8", "tune_memory=1Ti", "run_checkpoint_minutes=3", "index_processes=2") == plain
    assert recipe("tune_lora_rank=-1", "mine_depth=200") == plain  # their defaults
    others = ["tune_learning_rate=0.5", "tune_gpus=8", "tune_nodes=1 tune_lora_rank=8", "promote_minimum_gain=0.5"]
    others += ["run_seed=3", "run_cpu_image=another"]
    digests = {recipe(*words.split()) for words in others}
    assert len(digests | {plain}) == len(others) + 1
    assert set(NOT_IN_RECIPE) <= set(FORM.parameters)
    assert recipe(f"{RECIPE}=mine") == "mine"
