"""The compiled pipelines: accepted as they are, and only with what a real KFP backend resolves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from components.definition import image
from llm_retriever.settings import parameters
from llm_retriever.settings.options import option_names
from llm_retriever.training.trainjob.manifest import POD_LABELS
from pipelines import pods
from pipelines.form import SETTINGS
from pipelines.rerun import STEPS
from pipelines.workflow_size import LIMIT, workflow_size
from tests.pipelines.golden import ACCEPTED, DIRECTORY, LOOPS, PIPELINES, RERUNS, WHOLE, compiled, documents

OF_VARIANTS = {"mine-for-variants", "run-variant"}
GPU_STEPS = {
    "mine-negatives",
    "adapt-backbone",
    "tune-retriever",
    "encode-corpus",
    "build-index",
    "evaluate",
} | OF_VARIANTS
NEVER_CACHED = {"fingerprint-sources", "promote"}
OUTSIDE = {"prepare-corpus", "fetch-backbone"}
"""Steps that read something outside; what that is stands in a fingerprint, but not where they are run alone."""
URIS = {f"{artifact}_uri" for step in STEPS.values() for artifact in step.inputs}


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def pipeline(request: pytest.FixtureRequest) -> dict[str, Any]:
    return documents(request.param)[0]


def is_rerun(pipeline: dict[str, Any]) -> bool:
    return pipeline["pipelineInfo"]["name"].replace("-", "_") in RERUNS


def executors(pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = pipeline["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): e["container"] for name, e in found.items() if "container" in e}


def tasks(pipeline: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for component in dags(pipeline):
        yield from component["dag"]["tasks"].items()


def dags(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    return [pipeline["root"], *(c for c in pipeline["components"].values() if "dag" in c)]


def component_of(pipeline: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    return pipeline["components"][task["componentRef"]["name"]]


def guarded(pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks with a loop or a condition."""
    return [t for _, t in tasks(pipeline) if "triggerPolicy" in t or any("Iterator" in key for key in t)]


def step(task: str) -> str:
    """The step of a task; the second task of a step has a number: `evaluate-2`."""
    return re.sub(r"-\d+$", "", task)


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from strings(part)


def test_the_compiled_pipeline_is_the_accepted_one() -> None:
    accepted = (DIRECTORY / f"{ACCEPTED}.yaml").read_text()
    assert compiled(ACCEPTED) == accepted, (
        "if this is wanted, run `make golden` and read the difference before you commit it"
    )


def test_commands_are_plain_programs(pipeline: dict[str, Any]) -> None:
    for name, container in executors(pipeline).items():
        assert container["command"] == ["python", "-m", f"components.{step(name).replace('-', '_')}"]


def test_the_executor_input_is_the_only_placeholder_among_the_arguments(pipeline: dict[str, Any]) -> None:
    for container in executors(pipeline).values():
        assert container["args"] == ["--executor-input", "{{$}}"]


def test_nothing_uses_concatenation_or_if_present(pipeline: dict[str, Any]) -> None:
    assert [text for text in strings(pipeline) if '"IfPresent"' in text or '"Concat"' in text] == []


def test_every_task_passes_everything_that_its_component_declares(pipeline: dict[str, Any]) -> None:
    for _, task in tasks(pipeline):
        declared = component_of(pipeline, task).get("inputDefinitions", {})
        passed = task.get("inputs", {})
        for kind in ("parameters", "artifacts"):
            # A loop's item comes from its iterator.
            item = task.get("parameterIterator", {}).get("itemInput")
            missing = set(declared.get(kind, {})) - set(passed.get(kind, {})) - {item}
            optional = {n for n, d in declared.get(kind, {}).items() if d.get("isOptional")}
            assert missing == set()
            assert optional == set()


def test_no_setting_has_the_name_of_an_input_that_the_compiler_adds(pipeline: dict[str, Any]) -> None:
    added = {f"{what}_{bound}" for what in ("cpu", "memory") for bound in ("request", "limit")}
    added |= {"accelerator_type", "accelerator_count", "base_image"}
    for name, component in pipeline["components"].items():
        assert (name, added & set(component.get("inputDefinitions", {}).get("parameters", {}))) == (name, set())


def test_whatever_a_task_refers_to_reaches_its_dag(pipeline: dict[str, Any]) -> None:
    for component in dags(pipeline):
        declared = component.get("inputDefinitions", {})
        for task in component["dag"]["tasks"].values():
            for kind, singular in (("parameters", "Parameter"), ("artifacts", "Artifact")):
                given = task.get("inputs", {}).get(kind, {}).values()
                names = {value[key] for value in given if (key := f"componentInput{singular}") in value}
                assert names <= set(declared.get(kind, {}))


@pytest.mark.parametrize("name", sorted(LOOPS))
def test_a_loop_runs_over_items_of_the_type_that_its_steps_take(name: str) -> None:
    pipeline = documents(name)[0]
    loops = [task for _, task in tasks(pipeline) if "parameterIterator" in task]
    assert loops
    for loop in loops:
        item = loop["parameterIterator"]["itemInput"]
        body = component_of(pipeline, loop)
        kind = body["inputDefinitions"]["parameters"][item]["parameterType"]
        takers = [
            component_of(pipeline, task)["inputDefinitions"]["parameters"][name]["parameterType"]
            for task in body["dag"]["tasks"].values()
            for name, value in task["inputs"]["parameters"].items()
            if value.get("componentInputParameter") == item
        ]
        assert set(takers) == {kind}


def test_loops_run_over_parameters_and_collect_no_artifacts(pipeline: dict[str, Any]) -> None:
    assert [task for _, task in tasks(pipeline) if "artifactIterator" in task] == []
    assert '"artifactSelectors"' not in json.dumps(
        [c["dag"].get("outputs", {}) for c in dags(pipeline) if c is not pipeline["root"]]
    )


def test_loops_and_conditions_take_no_output_of_a_step_beside_them(pipeline: dict[str, Any]) -> None:
    for task in guarded(pipeline):
        values = task.get("inputs", {}).get("parameters", {}).values()
        assert [value for value in values if "taskOutputParameter" in value] == []


def test_a_pipeline_in_a_pipeline_that_takes_artifacts_takes_parameters_too(pipeline: dict[str, Any]) -> None:
    for component in dags(pipeline):
        declared = component.get("inputDefinitions", {})
        assert "artifacts" not in declared or declared.get("parameters")


def test_constants_hold_no_pipeline_placeholder_inside_other_text(pipeline: dict[str, Any]) -> None:
    for _, task in tasks(pipeline):
        for text in strings(task.get("inputs", {})):
            if "{{$.pipeline_" in text:
                assert re.fullmatch(r"\{\{\$\.pipeline_\w+\}\}", text)


def test_retries_are_left_to_the_cluster(pipeline: dict[str, Any]) -> None:
    """A policy of our own would be merged with the stock one where there is one, and retry bad input where there is none."""
    assert [name for name, task in tasks(pipeline) if "retryPolicy" in task] == []


def test_only_steps_that_look_outside_are_never_cached(pipeline: dict[str, Any]) -> None:
    steps = [(name, task) for name, task in tasks(pipeline) if "dag" not in component_of(pipeline, task)]
    uncached = {name for name, task in steps if not task.get("cachingOptions", {}).get("enableCache")}
    never = NEVER_CACHED | OUTSIDE if is_rerun(pipeline) else NEVER_CACHED
    assert uncached == {name for name, _ in steps if step(name) in never}


def test_gpu_steps_request_their_accelerator_and_cpu_steps_do_not(pipeline: dict[str, Any]) -> None:
    requesting = {n for n, c in executors(pipeline).items() if "accelerator" in c.get("resources", {})}
    assert requesting == {name for name in executors(pipeline) if step(name) in GPU_STEPS}


def resolved(pipeline: dict[str, Any], text: str, dag: dict[str, Any], task: dict[str, Any], around: Any) -> Any:
    """What Kubeflow's driver puts for a resource that refers to a parameter: its value where that is a text, else nothing.

    As `resolvePodSpecInputRuntimeParameter` of KFP 2.17: it takes the task's parameter and asks `GetStringValue()`.
    """
    found = re.fullmatch(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}", text)
    if not found:
        return text
    value = task["inputs"]["parameters"][found[1]]
    if "runtimeValue" in value:
        constant = value["runtimeValue"]["constant"]
        return constant if isinstance(constant, str) else ""
    name = value["componentInputParameter"]
    if dag is pipeline["root"]:
        default = dag["inputDefinitions"]["parameters"][name]["defaultValue"]
        return default if isinstance(default, str) else ""
    outer, caller = around[id(dag)]
    return resolved(pipeline, f"{{{{$.inputs.parameters['{name}']}}}}", outer, caller, around)


def test_every_resource_is_a_constant_or_a_parameter_whose_value_is_a_text(pipeline: dict[str, Any]) -> None:
    """R10: the driver drops a number without a word, and the pod runs without a GPU."""
    around = {
        id(component_of(pipeline, task)): (dag, task)
        for dag in dags(pipeline)
        for task in dag["dag"]["tasks"].values()
        if "dag" in component_of(pipeline, task)
    }
    seen = 0
    for dag in dags(pipeline):
        for name, task in dag["dag"]["tasks"].items():
            label = component_of(pipeline, task).get("executorLabel", "")
            resources = pipeline["deploymentSpec"]["executors"].get(label, {}).get("container", {}).get("resources", {})
            accelerator = resources.get("accelerator", {})
            for text in (*(v for v in resources.values() if not isinstance(v, dict)), *accelerator.values()):
                assert isinstance(text, str)
                assert resolved(pipeline, text, dag, task, around) not in ("", None), (name, text)
                seen += 1
            if accelerator:
                declared = component_of(pipeline, task)["inputDefinitions"]["parameters"]
                assert declared["gpus"]["parameterType"] == "STRING"
                assert re.fullmatch(
                    r"0|1|2|4|8|16", resolved(pipeline, accelerator["resourceCount"], dag, task, around)
                )
    assert seen


def test_what_only_costs_is_no_parameter_and_so_in_no_cache_key(pipeline: dict[str, Any]) -> None:
    of_pods = {
        "checkpoint_minutes",
        "threads",
        "batch_tokens",
        "memory_gib",
        "node_memory",
        "pod",
        "image",
        "cpus",
        "memory",
    }
    for component in pipeline["components"].values():
        declared = component.get("inputDefinitions", {}).get("parameters", {})
        assert not of_pods & set(declared)
        assert not [
            name for name in declared if name.startswith(("run_cpu", "run_gpu", "cpu_", "memory_", "accelerator"))
        ]
    for _, task in tasks(pipeline):
        passed = task.get("inputs", {}).get("parameters", {})
        assert not [n for n in passed if n in ("accelerator_count", "base_image", "cpu_request", "memory_request")]


@pytest.mark.parametrize("pipeline_name", sorted(PIPELINES))
def test_gpu_steps_get_shared_memory(pipeline_name: str) -> None:
    pipeline, platform = documents(pipeline_name)
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    mounted = {n.removeprefix("exec-") for n, s in settings.items() if "emptyDirMounts" in s}
    assert mounted == {name for name in executors(pipeline) if step(name) in GPU_STEPS}
    assert all(settings[f"exec-{n}"]["emptyDirMounts"][0]["mountPath"] == "/dev/shm" for n in mounted)


@pytest.mark.parametrize("pipeline_name", sorted(PIPELINES))
def test_every_pod_is_known_as_one_of_this_project(pipeline_name: str) -> None:
    pipeline, platform = documents(pipeline_name)
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    ours = {f"exec-{name}" for name in executors(pipeline)}
    assert {name for name, pod in pods.items() if pod["podMetadata"]["labels"] == POD_LABELS} == ours


@pytest.mark.parametrize("pipeline_name", sorted(PIPELINES))
def test_pods_have_no_deadline_and_no_queue_unless_a_preset_gives_them(pipeline_name: str) -> None:
    _, platform = documents(pipeline_name)
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        assert not {"activeDeadlineSeconds", "nodeSelector", "tolerations"} & set(pod)
        assert pods.QUEUE_LABEL not in pod["podMetadata"]["labels"]


def test_every_parameter_of_the_form_is_documented_and_sorted_by_stage(pipeline: dict[str, Any]) -> None:
    form = pipeline["root"]["inputDefinitions"]["parameters"]
    uris = set(form) & URIS if is_rerun(pipeline) else set()
    assert [name for name, p in form.items() if len(p.get("description", "")) < 15] == []
    assert [name for name in set(form) - uris if name.split("_")[0] not in (*SETTINGS, "run")] == []
    assert {name for name, p in form.items() if "defaultValue" not in p} == uris


def test_images_are_named_in_one_place(pipeline: dict[str, Any]) -> None:
    for name, container in executors(pipeline).items():
        kind = "gpu" if step(name) in GPU_STEPS | {"fetch-backbone"} else "cpu"
        assert (name, container["image"]) == (name, image(kind))


def test_the_form_is_for_people() -> None:
    """From 165 parameters; most of them were -1."""
    for name, pipeline in ((name, documents(name)[0]) for name in WHOLE):
        form = pipeline["root"]["inputDefinitions"]["parameters"]
        assert (name, 15 < len(form) <= 60) == (name, True)
        for stage in ("corpus", "backbone", "mine", "adapt", "tune", "index", "eval"):
            assert form[f"{stage}_options"] == {
                **form[f"{stage}_options"],
                "parameterType": "STRUCT",
                "defaultValue": {},
            }


def test_the_help_of_options_lists_every_key_with_its_default() -> None:
    form = documents("train_retriever")[0]["root"]["inputDefinitions"]["parameters"]
    for stage, settings in SETTINGS.items():
        for key in option_names(settings):
            assert (
                f"{key} = {json.dumps(parameters(settings)[key].default)}: " in form[f"{stage}_options"]["description"]
            )


def test_pipelines_fit_into_the_object_in_which_argo_keeps_a_run() -> None:
    size = workflow_size(*documents("train_retriever"), {})
    assert size.total < 500_000
    assert workflow_size(*documents("retrain"), {}).total < LIMIT
    assert workflow_size(*documents("train_retriever in parts"), {}).total < LIMIT


@pytest.mark.parametrize("pipeline_name", sorted(PIPELINES))
def test_no_credentials_but_by_reference_to_a_secret(pipeline_name: str) -> None:
    both = documents(pipeline_name)
    secrets = json.dumps(both[1])
    assert "secretName" in secrets
    assert not re.search(r"AKIA|aws_secret_access_key\s*=", json.dumps(both))
