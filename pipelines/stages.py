"""Turns a pipeline's parameters into the arguments of a step, and requests what its pod needs of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from components.definition import PASSED
from llm_retriever.settings import parameters
from llm_retriever.settings.options import OPTIONS, option_names
from llm_retriever.stores.secret import SECRET_FOLDER, STORE_SECRET
from llm_retriever.training.trainjob.manifest import POD_LABELS
from pipelines.form import SETTINGS, flat_name
from pipelines.pods import GPU_STAGES, REQUESTS, SHARED_MEMORY_VOLUME, PodSettings


def stage(given: Mapping[str, Any], prefix: str, settings: type | None = None, **others: Any) -> dict[str, Any]:
    """Builds the arguments of a step: its part of the form, and what the form does not have.

    Args:
        given: The pipeline's parameters.
        prefix: The stage.
        settings: Settings class of the step, where it is not that of the stage.
        **others: Settings that other steps answer.
    """
    known = parameters(settings or SETTINGS[prefix])
    names = [name for name, parameter in known.items() if parameter.place in PASSED and name not in others]
    arguments = {name: given[flat_name(prefix, name)] for name in names} | others
    if option_names(SETTINGS[prefix]):
        arguments[OPTIONS] = given[f"{prefix}_{OPTIONS}"]
    return arguments


def on_cpu(task: dsl.PipelineTask, prefix: str) -> dsl.PipelineTask:
    """Requests processors and memory, and gives the step S3."""
    cpus, memory = REQUESTS[prefix]
    task.set_cpu_request(cpus).set_memory_request(memory).set_memory_limit(memory)
    # Endpoint and keys, where the namespace has them; with service accounts that reach S3 there is no such secret. As files,
    # because each variable would stand a dozen times in the object in which Argo keeps a run.
    kubernetes.use_secret_as_volume(task, STORE_SECRET, SECRET_FOLDER, optional=True)
    for name, value in POD_LABELS.items():
        kubernetes.add_pod_label(task, name, value)
    return task


def on_gpu(task: dsl.PipelineTask, prefix: str) -> dsl.PipelineTask:
    """Requests GPUs, processors and memory, and memory that data loading and NCCL share; `pods.counted` writes the number.

    Args:
        task: Of a step that has the setting `gpus`.
        prefix: Its stage.
    """
    on_cpu(task, prefix).set_accelerator_type(PodSettings.gpu_type)
    size = PodSettings.shared_memory
    kubernetes.empty_dir_mount(task, SHARED_MEMORY_VOLUME, "/dev/shm", medium="Memory", size_limit=size)  # noqa: S108
    return task


def placed(task: dsl.PipelineTask, prefix: str) -> dsl.PipelineTask:
    """Requests for a task of a stage what its pod needs of the cluster."""
    return on_gpu(task, prefix) if prefix in GPU_STAGES else on_cpu(task, prefix)
