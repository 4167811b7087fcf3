"""Pods of a run, beyond the form: constants of the compiled YAML, which are in no key of Kubeflow's cache.

A preset names them in a table `[cluster]`, and in `[cluster.STAGE]` where one stage differs; `compile`, `submit`, `schedule`
and `rerun` write them into the compiled pipeline. Without a preset every step has the defaults below.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from google.protobuf import json_format
from pydantic import AfterValidator, Field

from components.supervision import DEFAULT_RESTARTS, RESTARTS
from llm_retriever.errors import InputError
from llm_retriever.settings import build, nearest, parameters
from llm_retriever.settings.options import POD_SETTINGS
from pipelines import steps

RETRY_SECONDS = 7 * 24 * 3600
"""No failed pod is started again so long after the first start: anything shorter than the step itself means no retry at all."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SHARED_MEMORY_VOLUME = "dshm"
OLD_REQUESTS = ("cpuRequest", "memoryRequest", "memoryLimit")
GPU_COUNT = "{{$.inputs.parameters['gpus']}}"
"""Kubeflow's driver replaces this by the component's own parameter, if that is a text; a number it drops without a word."""
REQUESTS = {stage: step.requests for stage, step in steps.STAGES.items()}
"""Processors and memory that a stage requests."""
STAGES = tuple(steps.STAGES)
GPU_STAGES = tuple(stage for stage, step in steps.STAGES.items() if "gpus" in parameters(step.settings))
"""Stages whose pods are placed as those with a GPU, also when they ask for none."""
STAGE_OF = {name: step.stage for name, step in steps.STEPS.items()}
"""Which stage a component belongs to."""
TOLERATION_KEYS = ("key", "operator", "value", "effect", "tolerationSeconds")


def _as_kubernetes_has_them(tolerations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(not toleration or not set(toleration) <= set(TOLERATION_KEYS) for toleration in tolerations):
        raise ValueError(f"tolerations have keys of {', '.join(TOLERATION_KEYS)}")
    return tolerations


@dataclasses.dataclass(frozen=True)
class PodSettings:
    """The keys of `[cluster]`."""

    cpus: Annotated[
        str,
        Field(
            pattern=r"^(\d+(\.\d+)?m?)?$",
            description="Processors that a pod requests, as 8 or 500m; empty = the stage's.",
        ),
    ] = ""
    memory: Annotated[
        str,
        Field(
            pattern=r"^(\d+(\.\d+)?([KMGT]i?)?)?$",
            description="Memory that a pod requests and may use, as 64Gi; empty = the stage's.",
        ),
    ] = ""
    image: Annotated[str, Field(description="Image of the steps; empty = as `make images` has noted them.")] = ""
    gpu_type: Annotated[
        str,
        Field(min_length=1, description="Resource name of the accelerator, as the cluster's device plug-in calls it."),
    ] = "nvidia.com/gpu"
    node_selector: Annotated[
        dict[str, str], Field(description='Labels that a node must have, as { pool = "a100" }; empty = any node.')
    ] = dataclasses.field(default_factory=dict)
    tolerations: Annotated[
        list[dict[str, Any]],
        AfterValidator(_as_kubernetes_has_them),
        Field(
            description="Taints that the pods tolerate, with the keys that Kubernetes has: key, operator, value, effect."
        ),
    ] = dataclasses.field(default_factory=list)
    timeout_hours: Annotated[
        float, Field(ge=0, description="After so many hours a pod is ended, and counts as failed; 0 = never.")
    ] = 0.0
    retries: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="How often a pod is started again; 0 = as the cluster does by itself: a lost pod twice, a failed one "
            "never, where Kubeflow's own settings of Argo are in force.",
        ),
    ] = 0
    restarts: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="How often a step starts its worker again, in its pod, after a crash that may pass.",
        ),
    ] = DEFAULT_RESTARTS
    shared_memory: Annotated[
        str,
        Field(pattern=r"^[1-9][0-9]*(Mi|Gi|Ti)$", description="Size of /dev/shm of the steps with a GPU, as 64Gi."),
    ] = "16Gi"
    queue: Annotated[
        str,
        Field(
            pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$",
            description="LocalQueue of Kueue in which the pods wait; empty = no label.",
        ),
    ] = ""


Table = Mapping[str, Mapping[str, Any]]
"""Keys of `PodSettings` that differ from the defaults, by stage."""


def read(table: Any, file: Path | None = None) -> dict[str, dict[str, Any]]:
    """Reads a preset's settings of pods, by stage.

    Args:
        table: A preset's `[cluster]`: keys of `PodSettings`, and tables of them named as stages.
        file: That it stands in, for the error.

    Raises:
        InputError: A key, a stage or a value is not one of these.
    """
    if not isinstance(table, Mapping):
        raise InputError("is no table", file=file, field="cluster", hint="write [cluster] and lines key = value")
    known = parameters(PodSettings)
    own = {name: values for name, values in table.items() if isinstance(values, Mapping) and name not in known}
    for name in own:
        if name not in STAGES:
            raise InputError("is no stage", file=file, field=f"cluster.{name}", hint=nearest(name, STAGES))
    common = {name: value for name, value in table.items() if name not in own}
    _check(common, "cluster", file)
    for name, values in own.items():
        _check(values, f"cluster.{name}", file)
    return {stage: {**common, **own.get(stage, {})} for stage in STAGES}


def settings_of(stage: str, given: Table) -> PodSettings:
    """Resolves all settings of a stage's pods.

    Raises:
        InputError: A value is refused.
    """
    cpus, memory = REQUESTS[stage]
    own = {name: value for name, value in given.get(stage, {}).items() if value != ""}
    return build(PodSettings, {"cpus": cpus, "memory": memory, **own})


def _check(values: Mapping[str, Any], where: str, file: Path | None) -> None:
    kinds = {name: parameter.type for name, parameter in parameters(PodSettings).items()}
    for name, value in values.items():
        # The settings' own reader takes numbers as text, which is right for a form, and hides a slip in a file.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in kinds and kinds[name] in (str, int, float) and number == (kinds[name] is str):
            kind = "a text" if kinds[name] is str else "a number"
            raise InputError(f"{value!r} is not {kind}", file=file, field=f"{where}.{name}", hint=f"give {kind}")
    try:
        build(PodSettings, dict(values))
    except InputError as error:
        known = error.field in kinds
        problem, hint = (error.problem, error.hint) if known else ("is no key of this table", f"use {', '.join(kinds)}")
        raise InputError(problem, file=file, field=f"{where}.{error.field}", hint=hint) from None


def counted(pipeline: Any) -> Any:
    """Requests as many GPUs for each step as it is told to use; changes and returns the pipeline.

    KFP's own setter takes a parameter of the pipeline, and hands it to the task in two parameters more; each of them stands
    a dozen times in the object in which Argo keeps a run.
    """
    executors = pipeline.pipeline_spec.deployment_spec["executors"]
    for executor in executors.values():
        resources = executor["container"]["resources"] if "container" in executor else {}
        for old in OLD_REQUESTS:  # numbers for backends before 2.4, beside the texts that newer ones read
            if old in resources:
                del resources[old]
        if "accelerator" in resources:
            kind = resources["accelerator"]["resourceType"]
            resources["accelerator"].Clear()
            resources["accelerator"].update({"resourceType": kind, "resourceCount": GPU_COUNT})
    return pipeline


def applied(pipeline: Any, given: Table, settings: Table | None = None) -> Any:
    """Returns a compiled pipeline whose steps have these pods; the given one stays as it is.

    Args:
        pipeline: What `@dsl.pipeline` made; its pods have the defaults.
        given: Keys of `PodSettings`, by stage.
        settings: Settings of steps that their pods hold, by stage.
    """
    if not any(given.values()) and not any((settings or {}).values()):
        return pipeline
    changed = copy.copy(pipeline)
    changed.component_spec = copy.deepcopy(pipeline.component_spec)
    specification = changed.pipeline_spec
    stages = _stages(specification)
    executors = json_format.MessageToDict(specification.deployment_spec)["executors"]
    pods = changed.platform_spec.platforms["kubernetes"].deployment_spec.executors
    for label, stage in stages.items():
        own = settings_of(stage, given)
        _set_container(executors[label]["container"], own, (settings or {}).get(stage, {}))
        _set_pod(pods[label], own)
    json_format.ParseDict({"executors": executors}, specification.deployment_spec)
    for task, label in _tasks(specification):
        if label in stages:
            _set_retries(task, settings_of(stages[label], given))
    return changed


def _stages(specification: Any) -> dict[str, str]:
    """Maps every executor of this project's components, by its label, to its stage."""
    stages = {}
    for label, executor in specification.deployment_spec["executors"].items():
        command = list(executor["container"]["command"]) if "container" in executor else [""]
        component = str(command[-1]).removeprefix("components.")
        if component in STAGE_OF:
            stages[label] = STAGE_OF[component]
    return stages


def _tasks(specification: Any) -> Iterator[tuple[Any, str]]:
    """Yields every task with the label of its executor ("" = a pipeline of its own)."""
    for component in (specification.root, *specification.components.values()):
        for task in component.dag.tasks.values():
            yield task, specification.components[task.component_ref.name].executor_label


def _set_container(container: dict[str, Any], own: PodSettings, settings: Mapping[str, Any]) -> None:
    """Sets processors, memory, accelerator, image, and what the step reads from its environment."""
    resources = container.setdefault("resources", {})
    resources |= {
        "resourceCpuRequest": own.cpus,
        "resourceMemoryRequest": own.memory,
        "resourceMemoryLimit": own.memory,
    }
    if "accelerator" in resources:
        resources["accelerator"]["resourceType"] = own.gpu_type
    container["image"] = own.image or container["image"]
    variables = {RESTARTS: str(own.restarts)} if own.restarts != PodSettings.restarts else {}
    if settings:
        variables[POD_SETTINGS] = json.dumps(dict(settings), sort_keys=True)
    if variables:
        container["env"] = [*container.get("env", []), *({"name": n, "value": v} for n, v in variables.items())]


def _set_pod(pod: Any, settings: PodSettings) -> None:
    if settings.timeout_hours:
        # Whole numbers of 64 bits are texts in Protobuf's JSON.
        pod.update({"activeDeadlineSeconds": str(max(1, round(settings.timeout_hours * 3600)))})
    if settings.queue:
        labels = dict(pod["podMetadata"]["labels"]) if "podMetadata" in pod else {}
        pod.update({"podMetadata": {"labels": {**labels, QUEUE_LABEL: settings.queue}}})
    if settings.node_selector:
        pod.update({"nodeSelector": {"labels": settings.node_selector}})
    if settings.tolerations:
        pod.update({"tolerations": [{k: str(v) for k, v in t.items()} for t in settings.tolerations]})
    if "emptyDirMounts" in pod:
        for mount in pod["emptyDirMounts"]:
            if mount["volumeName"] == SHARED_MEMORY_VOLUME:
                mount.update({"sizeLimit": settings.shared_memory})


def _set_retries(task: Any, settings: PodSettings) -> None:
    if settings.retries:
        attempts = math.ceil((settings.retries + 1) * settings.timeout_hours * 3600)
        policy = task.retry_policy
        policy.max_retry_count, policy.backoff_factor = settings.retries, 2
        policy.backoff_duration.seconds = 60
        policy.backoff_max_duration.seconds = max(RETRY_SECONDS, attempts)
