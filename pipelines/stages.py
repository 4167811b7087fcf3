"""How a pipeline's parameters become the arguments of a step, and what a step's pod asks of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from components.definition import PASSED
from llm_retriever.settings import parameters
from llm_retriever.settings.options import OPTIONS, option_names
from pipelines.form import SETTINGS, flat_name
from pipelines.pods import REQUESTS, RETRY_SECONDS, SHARED_MEMORY_VOLUME, PodSettings

STORE_SECRET = "llm-retriever-s3"  # noqa: S105 - the name of a secret, not a secret
STORE_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")


def stage(given: Mapping[str, Any], prefix: str, settings: type | None = None, **others: Any) -> dict[str, Any]:
    """Arguments of a step: its part of the form, and what the form does not have.

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
    longest = f"{RETRY_SECONDS}s"
    task.set_retry(PodSettings.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration=longest)
    # Endpoint and keys, where the namespace has them; on a cluster with accounts of its own there is no such secret.
    kubernetes.use_secret_as_env(task, STORE_SECRET, {name: name for name in STORE_VARIABLES}, optional=True)
    return task


def on_gpu(task: dsl.PipelineTask, prefix: str, gpus: Any, *, owner: bool = False) -> dsl.PipelineTask:
    """Requests GPUs, processors and memory, and shared memory for data loading and NCCL.

    Args:
        task: Of a step.
        prefix: Its stage.
        gpus: Their number, a text: Kubeflow drops a number without a word.
        owner: Whether the step may start something that its pod owns, so that it goes with it.
    """
    on_cpu(task, prefix).set_accelerator_type(PodSettings.gpu_type).set_accelerator_limit(gpus)
    size = PodSettings.shared_memory
    kubernetes.empty_dir_mount(task, SHARED_MEMORY_VOLUME, "/dev/shm", medium="Memory", size_limit=size)  # noqa: S108
    if owner:
        kubernetes.use_field_path_as_env(task, "POD_NAME", "metadata.name")
    return task
