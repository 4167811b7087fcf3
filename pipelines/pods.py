"""What the pods of a run are given beyond the form: Kubeflow takes these as constants of the YAML and not as parameters.

A preset names them in a table `[cluster]`, and in `[cluster.STAGE]` where one stage differs; `compile`, `submit`, `schedule`
and `rerun` write them into the compiled pipeline. Without a preset every step has the defaults below.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from llm_retriever.errors import InputError
from llm_retriever.settings import build, parameters

RETRY_SECONDS = 7 * 24 * 3600
"""No failed pod is started again so long after the first start: anything shorter than the step itself means no retry at all."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SHARED_MEMORY_VOLUME = "dshm"
STAGE_OF = {
    "fingerprint_sources": "fingerprint",
    "prepare_corpus": "corpus",
    "fetch_backbone": "backbone",
    "mine_negatives": "mine",
    "adapt_backbone": "adapt",
    "tune_retriever": "tune",
    "encode_corpus": "index",
    "build_index": "index",
    "evaluate": "eval",
    "compare": "compare",
    "promote": "promote",
}
"""Which stage a component belongs to."""
STAGES = tuple(dict.fromkeys(STAGE_OF.values()))


@dataclasses.dataclass(frozen=True)
class PodSettings:
    """The keys of `[cluster]`."""

    timeout_hours: Annotated[
        float, Field(ge=0, description="After so many hours a pod is ended, and counts as failed; 0 = never.")
    ] = 0.0
    retries: Annotated[int, Field(ge=0, le=100, description="How often a failed pod is started again.")] = 2
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


def read(table: Any, file: Path | None = None) -> dict[str, PodSettings]:
    """The settings of every stage.

    Args:
        table: A preset's `[cluster]`: keys of `PodSettings`, and tables of them named as stages.
        file: That it stands in, for the error.

    Raises:
        InputError: A key, a stage or a value is not one of these.
    """
    if not isinstance(table, Mapping):
        raise InputError("is no table", file=file, field="cluster", mend="write [cluster] and lines key = value")
    own = {name: values for name, values in table.items() if isinstance(values, Mapping)}
    unknown = sorted(set(own) - set(STAGES))
    if unknown:
        field = f"cluster.{unknown[0]}"
        raise InputError("is no stage", file=file, field=field, mend=f"use one of {', '.join(STAGES)}")
    common = {name: value for name, value in table.items() if name not in own}
    _settings(common, "cluster", file)
    return {name: _settings({**common, **own.get(name, {})}, _table(name, own), file) for name in STAGES}


def _table(stage: str, own: Mapping[str, Any]) -> str:
    return f"cluster.{stage}" if stage in own else "cluster"


def _settings(values: Mapping[str, Any], where: str, file: Path | None) -> PodSettings:
    kinds = {name: parameter.type for name, parameter in parameters(PodSettings).items()}
    for name, value in values.items():
        # The settings' own reader takes numbers as text, which is right for a form, and hides a slip in a file.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in kinds and number == (kinds[name] is str):
            kind = "a text" if kinds[name] is str else "a number"
            raise InputError(f"{value!r} is not {kind}", file=file, field=f"{where}.{name}", mend=f"give {kind}")
    try:
        return build(PodSettings, dict(values))
    except InputError as error:
        known = f"use one of {', '.join(kinds)}" if error.field not in kinds else error.mend
        problem = error.problem if error.field in kinds else "is no key of this table"
        raise InputError(problem, file=file, field=f"{where}.{error.field}", mend=known) from None


def applied(pipeline: Any, settings: Mapping[str, PodSettings]) -> Any:
    """A compiled pipeline whose steps have these settings; the given one stays as it is.

    Args:
        pipeline: What `@dsl.pipeline` made.
        settings: By stage, as `read` returns them.
    """
    if all(stage == PodSettings() for stage in settings.values()):
        return pipeline
    changed = copy.copy(pipeline)
    changed.component_spec = copy.deepcopy(pipeline.component_spec)
    stages = _stages(changed.pipeline_spec)
    executors = changed.platform_spec.platforms["kubernetes"].deployment_spec.executors
    for label, stage in stages.items():
        _set_pod(executors[label], settings[stage])
    for task, label in _tasks(changed.pipeline_spec):
        if label in stages:
            _set_retries(task, settings[stages[label]])
    return changed


def _stages(specification: Any) -> dict[str, str]:
    """Stage of every executor of this project's components, by its label."""
    stages = {}
    for label, executor in specification.deployment_spec["executors"].items():
        command = list(executor["container"]["command"]) if "container" in executor else [""]
        component = str(command[-1]).removeprefix("components.")
        if component in STAGE_OF:
            stages[label] = STAGE_OF[component]
    return stages


def _tasks(specification: Any) -> Iterator[tuple[Any, str]]:
    """Every task with the label of its executor ("" = a pipeline of its own)."""
    for component in (specification.root, *specification.components.values()):
        for task in component.dag.tasks.values():
            yield task, specification.components[task.component_ref.name].executor_label


def _set_pod(pod: Any, settings: PodSettings) -> None:
    if settings.timeout_hours:
        # Whole numbers of 64 bits are texts in Protobuf's JSON.
        pod.update({"activeDeadlineSeconds": str(max(1, round(settings.timeout_hours * 3600)))})
    if settings.queue:
        pod.update({"podMetadata": {"labels": {QUEUE_LABEL: settings.queue}}})
    if "emptyDirMounts" in pod:
        for mount in pod["emptyDirMounts"]:
            if mount["volumeName"] == SHARED_MEMORY_VOLUME:
                mount.update({"sizeLimit": settings.shared_memory})


def _set_retries(task: Any, settings: PodSettings) -> None:
    if not settings.retries:
        task.ClearField("retry_policy")
        return
    task.retry_policy.max_retry_count = settings.retries
    attempts = math.ceil((settings.retries + 1) * settings.timeout_hours * 3600)
    task.retry_policy.backoff_max_duration.seconds = max(RETRY_SECONDS, attempts)
