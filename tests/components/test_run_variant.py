"""The step run_variant: as four steps one after the other, with finished parts that are kept and taken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.adapt_backbone.__main__ import STEP as ADAPT
from components.build_index.__main__ import STEP as INDEX
from components.evaluate.__main__ import STEP as EVALUATE
from components.run_variant.__main__ import STEP
from components.run_variant.four_stages import REPORT, SUMMARY
from components.tune_retriever.__main__ import STEP as TUNE
from llm_retriever import files
from llm_retriever.data.collection import Collection
from tests.conftest import write_training_set_of
from tests.evaluation.conftest import write_runs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ADAPT_OPTIONS = {
    "method": "ql",
    "passage_length": 120,
    "query_length": 30,
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_steps": 2,
    "precision": "fp32",
}
TUNE_OPTIONS = {
    "method": "llm-ql",
    "passage_length": 200,
    "query_length": 160,
    "passages_per_query": 3,
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_steps": 2,
    "learning_rate": 1e-3,
    "precision": "fp32",
}
INDEX_OPTIONS = {"precision": "fp32"}
EVAL_OPTIONS = {
    "attention_queries": 4,
    "depth": 20,
    "measures": "mrr@10,ndcg@10",
    "precision": "fp32",
    "untuned_passages": 0,
}
PARTS = ("adapted", "retriever", "index")


@pytest.fixture(scope="module")
def data(collection_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As mine_for_variants leaves it; not to be changed."""
    directory = tmp_path_factory.mktemp("data") / "data"
    files.link_tree(collection_directory, directory / "collection")
    write_training_set_of(collection_directory, directory / "training_set")
    write_runs(directory / "bm25_runs", Collection.open(collection_directory), splits=["test"])
    return directory


def flags(step: Any, paths: dict[str, Path], **settings: Any) -> list[str]:
    named = {name: paths[name] for name in (*step.inputs, *step.outputs)}
    texts = {name: json.dumps(v) if isinstance(v, dict) else str(v) for name, v in settings.items()}
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**named, **texts}.items()]


class Bench:
    """Runs a variant in a directory of its own."""

    def __init__(self, backbone: Path, data: Path, directory: Path, checkpoint_uri: str = "") -> None:
        self.paths = {"backbone": backbone, "data": data}
        self.paths |= {name: directory / name for name in STEP.outputs}
        self.checkpoint_uri = checkpoint_uri

    def flags(self, **others: Any) -> list[str]:
        given = {"adapt": ADAPT_OPTIONS, "tune": TUNE_OPTIONS, "index": INDEX_OPTIONS, "eval": EVAL_OPTIONS}
        return flags(STEP, self.paths, checkpoint_uri=self.checkpoint_uri, **(given | others))

    def run(self, **others: Any) -> int:
        return STEP.execute(self.flags(**others))

    def evaluation(self) -> dict[str, Any]:
        return json.loads((self.paths["evaluation"] / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for checkpoints that the tests of this module share."""
    return tmp_path_factory.mktemp("stored")


@pytest.fixture(scope="module")
def first(backbone_directory: Path, data: Path, stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A variant that has run to its end."""
    bench = Bench(backbone_directory, data, tmp_path_factory.mktemp("first"), str(stored))
    assert bench.run() == 0
    return bench


def test_the_results_are_those_of_four_steps(first: Bench, tmp_path: Path) -> None:
    data = first.paths["data"]
    paths = {name: data / name for name in ("collection", "training_set", "bm25_runs")}
    paths |= {"backbone": first.paths["backbone"]}
    paths |= {n: tmp_path / n for n in ("adapted", "retriever", "index", "curves", "metrics")}
    paths |= {n: tmp_path / n for n in EVALUATE.outputs}
    for step, options in (
        (ADAPT, ADAPT_OPTIONS),
        (TUNE, TUNE_OPTIONS),
        (INDEX, INDEX_OPTIONS),
        (EVALUATE, EVAL_OPTIONS),
    ):
        assert step.execute(flags(step, paths, **options)) == 0
    ours, theirs = first.evaluation(), json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert ours["splits"] == theirs["splits"]
    assert ours["card"] == theirs["card"]
    assert ours["curves"] == theirs["curves"]
    assert {"attention", "costs", "efficiency"} <= set(ours)
    weights = [
        load_file(path / "model" / "model.safetensors") for path in (first.paths["retriever"], tmp_path / "retriever")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert (first.paths["evaluation"] / REPORT).read_text().startswith("<!doctype html>")
    assert "ndcg@10" in (first.paths["evaluation"] / SUMMARY).read_text().lower()


def test_nothing_is_left_but_outputs_and_kept_parts(first: Bench, stored: Path) -> None:
    assert {path.name for path in first.paths["retriever"].parent.iterdir()} == {"evaluation", "retriever"}
    assert sorted(path.name.split("-")[0] for path in (stored / "results").glob("*.json")) == sorted(PARTS)
    assert [path for path in (stored / "variants").rglob("*") if path.is_file()] == []


def again(first: Bench, directory: Path, stored: Path | str) -> Bench:
    return Bench(first.paths["backbone"], first.paths["data"], directory, str(stored))


def taken(printed: str) -> list[str]:
    return [line.split(":")[0] for line in printed.splitlines() if ": taken from " in line]


def test_other_settings_of_the_evaluation_train_nothing(
    first: Bench, stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = again(first, tmp_path, stored)
    assert bench.run(overrides={"eval": {"query_length": 150}}, pod={"tune": {"checkpoint_minutes": 3.0}}) == 0
    printed = capfd.readouterr().err
    assert taken(printed) == list(PARTS)
    assert "loss" not in printed
    assert bench.evaluation()["card"] == first.evaluation()["card"]


def test_variants_that_agree_on_stage_one_share_it(
    first: Bench, stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = again(first, tmp_path, stored)
    assert bench.run(overrides={"tune": {"learning_rate": 2e-3}}) == 0
    assert taken(capfd.readouterr().err) == ["adapted"]
    assert bench.evaluation()["card"] != first.evaluation()["card"]


def copied(stored: Path, directory: Path) -> Path:
    return Path(shutil.copytree(stored, directory / "stored"))


def test_a_damaged_part_is_made_anew(
    first: Bench, stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = copied(stored, tmp_path)
    [mark] = (path for path in (own / "results").glob("index-*.json") if named_in(path, first))
    content = json.loads(mark.read_text())
    largest = max(content["files"], key=lambda row: row["size"])["name"]
    shard = own / "results" / content["folder"] / largest
    shard.write_bytes(shard.read_bytes()[:-1] + bytes([shard.read_bytes()[-1] ^ 1]))
    bench = again(first, tmp_path / "out", own)
    assert bench.run() == 0
    printed = capfd.readouterr().err
    assert taken(printed) == ["adapted", "retriever"]
    assert f"{largest!r} does not have the checksum" in printed
    assert bench.evaluation()["splits"] == first.evaluation()["splits"]


def named_in(mark: Path, bench: Bench) -> bool:
    """Whether a kept index is that of this variant's retriever."""
    folder = mark.parent / json.loads(mark.read_text())["folder"]
    return json.loads((folder / "manifest.json").read_text())["card"] == bench.evaluation()["card"]


@pytest.mark.slow
def test_an_index_whose_shards_are_gone_is_built_anew(
    first: Bench, stored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own, shards = copied(stored, tmp_path), tmp_path / "shards"
    bench = again(first, tmp_path / "out", own)
    elsewhere = {**INDEX_OPTIONS, "shards_uri": str(shards)}
    assert bench.run(index=elsewhere) == 0
    assert taken(capfd.readouterr().err) == ["adapted", "retriever"]
    shutil.rmtree(shards)
    assert bench.run(index=elsewhere) == 0
    printed = capfd.readouterr().err
    assert taken(printed) == ["adapted", "retriever"]
    assert "index: made anew; " in printed
    assert bench.evaluation()["splits"] == first.evaluation()["splits"]


def test_a_killed_variant_goes_on_behind_the_part_that_was_finished(first: Bench, tmp_path: Path) -> None:
    own = tmp_path / "stored"
    bench = again(first, tmp_path / "out", own)
    process = started(bench)
    wait_for(lambda: list((own / "results").glob("adapted-*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not bench.paths["retriever"].exists()
    assert not list((own / "results").glob("index-*.json"))
    shutil.rmtree(tmp_path / "out")  # as with a pod's disk
    process = started(bench)
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    assert "adapted" in taken(printed)
    assert bench.evaluation()["splits"] == first.evaluation()["splits"]


@pytest.mark.slow
def test_a_variant_that_is_asked_to_stop_leaves_a_checkpoint(first: Bench, tmp_path: Path) -> None:
    own = tmp_path / "stored"
    bench = again(first, tmp_path / "out", own)
    long = {"adapt": {"method": "none"}, "tune": {"max_steps": 2000}}
    process = started(bench, overrides=long, pod={"tune": {"checkpoint_minutes": 0.001}})
    wait_for(lambda: list((own / "variants").rglob("checkpoint-*.json")), process)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 143, printed
    assert list((own / "variants").rglob("checkpoint-*.json"))
    assert not list((own / "results").glob("*"))


def started(bench: Bench, **others: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "components.run_variant", *bench.flags(**others)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"tune": {"lora_rnak": 8}},
            'field "tune_options.lora_rnak": is not a key of these options; did you mean lora_rank?',
        ),
        ({"tune": {"lora_rank": "8"}}, "field \"tune_options.lora_rank\": '8' is not of type int"),
        ({"eval": {"depth": 0}}, 'field "eval_options.depth": 0 is refused'),
        ({"adapt": {"gpus": "2"}}, 'field "adapt_options.gpus": has a parameter of its own'),
        ({"overrides": {"tunes": {}}}, 'field "overrides.tunes": is no stage; did you mean tune?'),
        ({"overrides": {"tune": {"method": "dpr"}}}, "field \"overrides.tune.method\": 'dpr' is refused"),
        ({"pod": {"tune": {"checkpoint_minutes": 0.0}}}, 'field "pod.tune.checkpoint_minutes": 0.0 is refused'),
        ({"index": "[1]"}, 'field "index": [1] is refused; input should be a valid dictionary'),
        ({"index": "{"}, 'field "index": '),
        (
            {"overrides": {"tune": {"method": "llama2vec"}, "adapt": {"method": "none"}}},
            'field "method": llama2vec is read',
        ),
    ],
)
def test_bad_options_end_with_code_2_and_one_line(
    given: dict[str, Any],
    told: str,
    backbone_directory: Path,
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(backbone_directory, data, tmp_path / "out")
    assert bench.run(**given) == 2
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("run_variant: ")]
    assert told in line
    assert not bench.paths["retriever"].exists()
    assert not bench.paths["evaluation"].exists()


def test_pods_hold_settings_of_the_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"pod": {"tune": {"checkpoint_minutes": 5.0}, "index": {"batch_tokens": 99}}}
    monkeypatch.setenv("LLM_RETRIEVER_POD_SETTINGS", json.dumps(held))
    told = STEP.told({"tune": {"epochs": 2.0}, "gpus": "1"})
    assert told == {**held, "tune": {"epochs": 2.0}, "gpus": "1"}
