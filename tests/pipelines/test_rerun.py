"""Running one step again on what an earlier run has left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_retriever.errors import InputError
from llm_retriever.stores.opening import open_store
from pipelines.__main__ import main
from pipelines.choice import choose, names_of, stages_of
from pipelines.compilation import compile_pipeline
from pipelines.form import OF_A_VARIANT, PARTS, flat_names, folded
from pipelines.rerun import PRODUCERS, STEPS, from_run, rerun_of
from tests.conftest import write_beir
from tests.s3_server import S3Server


@pytest.fixture(scope="module", params=sorted(STEPS))
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    target = tmp_path_factory.mktemp("rerun") / "pipeline.yaml"
    return next(yaml.safe_load_all(compile_pipeline(rerun_of(request.param), target).read_text()))


def test_a_rerun_is_one_step_and_an_importer_for_each_of_its_inputs(compiled: dict[str, Any]) -> None:
    name = compiled["pipelineInfo"]["name"].removeprefix("rerun-").replace("-", "_")
    executors = compiled["deploymentSpec"]["executors"].values()
    programs = [e["container"]["command"][-1] for e in executors if "container" in e]
    assert programs == [f"components.{name}"]
    importers = [e["importer"] for e in executors if "importer" in e]
    assert len(importers) == len(STEPS[name].inputs)
    roots = compiled["root"]["inputDefinitions"]["parameters"]
    for importer in importers:
        assert not importer.get("reimport")
    assert {f"{artifact}_uri" for artifact in STEPS[name].inputs} <= set(roots)
    assert all(parameter["description"] for parameter in roots.values())


def test_every_task_gets_everything_that_its_component_declares(compiled: dict[str, Any]) -> None:
    for task in compiled["root"]["dag"]["tasks"].values():
        declared = compiled["components"][task["componentRef"]["name"]].get("inputDefinitions", {})
        for kind in ("parameters", "artifacts"):
            assert set(declared.get(kind, {})) <= set(task.get("inputs", {}).get(kind, {}))


def test_steps_that_look_at_something_outside_are_never_taken_from_the_cache(compiled: dict[str, Any]) -> None:
    name = compiled["pipelineInfo"]["name"].removeprefix("rerun-")
    (task,) = [t for t in compiled["root"]["dag"]["tasks"].values() if t["taskInfo"]["name"] == name]
    outside = name in ("prepare-corpus", "fetch-backbone", "promote")
    assert bool(task.get("cachingOptions", {}).get("enableCache")) is not outside


def test_every_input_of_every_step_has_a_producer() -> None:
    assert {artifact for step in STEPS.values() for artifact in step.inputs} <= set(PRODUCERS)


def form(name: str) -> dict[str, Any]:
    return dict(rerun_of(name).component_spec.inputs)


def test_parameters_without_a_default_are_the_uris_alone() -> None:
    for name in STEPS:
        open_ones = [parameter for parameter, spec in form(name).items() if not spec.optional]
        assert open_ones == [f"{artifact}_uri" for artifact in STEPS[name].inputs]


def test_artifacts_of_a_run_on_a_cluster_are_found_where_kubeflow_puts_them(s3: S3Server) -> None:
    run = f"s3://{s3.bucket}/artifacts/train-retriever/run-7"
    store = open_store(run)
    for artifact, (task, output) in PRODUCERS.items():
        store.write(f"{task}/execution-{artifact}/{output}/content", b"x")
        store.write(f"{task}/execution-{artifact}/executor-logs-0", b"x")
    found = from_run("promote", run)
    assert found == {
        "evaluation_uri": f"{run}/evaluate/execution-evaluation/evaluation",
        "retriever_uri": f"{run}/tune-retriever/execution-retriever/retriever",
        "index_uri": f"{run}/build-index/execution-index/index",
    }


def test_an_artifact_that_came_from_the_cache_has_to_be_named(s3: S3Server) -> None:
    run = f"s3://{s3.bucket}/artifacts/train-retriever/run-8"
    open_store(run).write("tune-retriever/e/retriever/content", b"x")
    with pytest.raises(InputError, match="evaluation_uri="):
        from_run("promote", run)
    given = dict.fromkeys(("evaluation_uri", "index_uri"), "s3://x/there")
    assert from_run("promote", run, given) == {"retriever_uri": f"{run}/tune-retriever/e/retriever"}


def test_what_a_local_step_was_told_is_what_its_rerun_starts_from(tmp_path: Path) -> None:
    message = {
        "inputs": {
            "parameterValues": {
                "depth": 50.0,
                "options": {"score_ceiling": 0.9, "bm25_tune_queries": 7.0, "bm25_k1": 0.9},
                "gpus": "2",
                "unknown": 1,
            },
            "artifacts": {"collection": {"artifacts": [{"uri": "/elsewhere/collection"}]}},
        }
    }
    (tmp_path / "mine-negatives").mkdir()
    (tmp_path / "mine-negatives" / "executor_input.json").write_text(json.dumps(message))
    found = from_run("mine_negatives", str(tmp_path))
    untouched = {name for name in found if name in flat_names() and found[name] == flat_names()[name].parameter.default}
    assert untouched
    assert {name: value for name, value in found.items() if name not in untouched} == {
        "collection_uri": "/elsewhere/collection",
        "mine_depth": 50,
        "mine_score_ceiling": 0.9,
        "mine_bm25_k1": 0.9,
        "mine_bm25_tune_queries": 7,
        "mine_gpus": "2",
    }
    assert isinstance(found["mine_depth"], int)


def test_a_step_inside_a_condition_is_found_too(tmp_path: Path) -> None:
    folder = tmp_path / "train-when-changed" / "sources-changed" / "evaluate"
    folder.mkdir(parents=True)
    message = {"inputs": {"parameterValues": {"production_uri": "s3://bucket/published/versions/7", "depth": 9.0}}}
    (folder / "executor_input.json").write_text(json.dumps(message))
    found = from_run("evaluate", str(tmp_path))
    assert (found["eval_production_uri"], found["eval_depth"]) == ("s3://bucket/published/versions/7", 9)


def test_what_is_in_production_can_be_named_and_the_fingerprint_cannot() -> None:
    forms = {name: form(name) for name in STEPS}
    assert forms["evaluate"]["eval_production_uri"].default == ""
    assert not any(name.endswith("source_fingerprint") for own in forms.values() for name in own)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["train_retriever", "retrain", "compare_methods", *(f"rerun_{step}" for step in STEPS)]
)
def test_whatever_a_pipeline_can_be_told_reaches_its_form_or_its_pods(name: str) -> None:
    """Nothing that a command accepts is lost, and nothing is sent that the pipeline does not have."""
    pipeline = choose([name, "promote_uri=s3://b/p"] if name == "retrain" else [name]).pipeline
    inputs = set(pipeline.component_spec.inputs)
    for flat, known in flat_names().items():
        if flat not in names_of(name) or flat == PARTS:
            continue
        other = different(known.parameter)
        whole = OF_A_VARIANT if name == "compare_methods" else ()
        told = folded({flat: other}, whole, stages_of(name))
        assert set(told.form) <= inputs, flat
        assert told.form or told.pods or told.settings, flat


def different(parameter: Any) -> Any:
    """Some other value of its type than the default."""
    made: dict[type, Any] = {bool: not parameter.default, int: 7, float: 0.7, str: "x", dict: {"a": "b"}, list: [{}]}
    return made[parameter.type]


def test_what_the_earlier_run_was_told_comes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = {"inputs": {"parameterValues": {"batch_size": 64.0, "options": {}}, "artifacts": {}}}
    (tmp_path / "tune-retriever").mkdir()
    (tmp_path / "tune-retriever" / "executor_input.json").write_text(json.dumps(message))
    found = from_run("tune_retriever", str(tmp_path))
    assert (found["tune_batch_size"], found["tune_lora_rank"]) == (64, -1)


def test_a_step_is_rerun_here_with_another_setting(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    corpus, root = write_beir(tmp_path / "corpus"), tmp_path / "build"
    with (corpus / "corpus.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"_id": f"more{i}", "title": "", "text": f"Nobody judged {i}."}) + "\n" for i in range(9)
        )
    run = tmp_path / "nothing"
    run.mkdir()
    first = ["rerun", "prepare_corpus", "--from-run", str(run), "--root", str(root), f"corpus_uri={corpus}"]
    assert main([*first, "corpus_heldout_queries=0"]) == 0
    (before,) = root.glob("runs/rerun-prepare-corpus-*")
    again = ["rerun", "prepare_corpus", "--from-run", str(before), "--root", str(root), "corpus_max_passages=63"]
    assert main(again) == 0
    (after,) = set(root.glob("runs/rerun-prepare-corpus-*")) - {before}
    counts = [
        json.loads((folder / "prepare-corpus" / "collection" / "collection.json").read_text())["counts"]["passages"]
        for folder in (before, after)
    ]
    assert counts == [69, 63]
    assert f"outputs: {after}" in capfd.readouterr().out
    assert (
        main(["rerun", "prepare_corpus", "--from-run", str(before), "--root", str(root), "corpus_max_passages=-1"]) == 2
    )


def test_an_unknown_step_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerun", "bake", "--from-run", "x"]) == 2
    assert "is no step that can be rerun" in capsys.readouterr().err
