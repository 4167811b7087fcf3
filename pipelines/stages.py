"""How a pipeline's flat, prefixed parameters become the settings of its steps, and what a step asks of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kfp import dsl, kubernetes

from llm_retriever.settings import (
    AdaptationSettings,
    BackboneSettings,
    CompareSettings,
    CorpusSettings,
    EvaluationSettings,
    IndexSettings,
    MiningSettings,
    PartSettings,
    PromotionSettings,
    TuningSettings,
    parameters,
)

SETTINGS: dict[str, type] = {
    "corpus": CorpusSettings,
    "backbone": BackboneSettings,
    "mine": MiningSettings,
    "adapt": AdaptationSettings,
    "tune": TuningSettings,
    "index": IndexSettings,
    "eval": EvaluationSettings,
    "promote": PromotionSettings,
}
ALL_SETTINGS: dict[str, type] = {**SETTINGS, "compare": CompareSettings}
PARTS_HELP = f"{parameters(PartSettings)['parts'].help} 1 = build_index itself encodes."
STAGES = (*ALL_SETTINGS, "run")
RUN_HELP = {
    "run_gpu_type": "Resource name of the accelerator, as the cluster's device plug-in calls it.",
    "run_cpu_image": "Image of the steps without a GPU.",
    "run_gpu_image": "Image of the steps that run a model.",
}
SHARED = ("seed", "precision", "checkpoint_uri", "checkpoint_minutes")
RENAMED = {"processes": "gpus", "tune": "weights"}
STORE_SECRET = "llm-retriever-s3"  # noqa: S105 - the name of a secret, not a secret
STORE_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")


def parameter_name(prefix: str, setting: str) -> str:
    """The pipeline's name for a step's setting: `mine`, `depth` -> `mine_depth`; seed and the like belong to the run.

    >>> parameter_name("backbone", "source"), parameter_name("tune", "seed"), parameter_name("tune", "processes")
    ('backbone', 'run_seed', 'tune_gpus')
    """
    if setting in SHARED:
        return f"run_{setting}"
    if (prefix, setting) == ("backbone", "source"):
        return "backbone"
    return f"{prefix}_{RENAMED.get(setting, setting)}"


def stage(given: Mapping[str, Any], prefix: str, settings: type, **others: Any) -> dict[str, Any]:
    """Arguments of a step: every setting, taken from the pipeline's parameters `given` or from `others`."""
    names = [name for name in parameters(settings) if name not in others]
    return {name: given[parameter_name(prefix, name)] for name in names} | others


def on_cpu(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    """Requests processors and memory, and the CPU image."""
    return _requested(task, given, prefix).set_container_image(given["run_cpu_image"])


def on_model_image(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    """Requests processors and memory, and the image that has torch, but no GPU."""
    return _requested(task, given, prefix).set_container_image(given["run_gpu_image"])


def on_gpu(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    """Requests GPUs, processors and memory, shared memory for data loading and NCCL, and the GPU image."""
    _requested(task, given, prefix).set_container_image(given["run_gpu_image"])
    task.set_accelerator_type(given["run_gpu_type"]).set_accelerator_limit(given[f"{prefix}_gpus"])
    kubernetes.empty_dir_mount(task, "dshm", "/dev/shm", medium="Memory", size_limit="16Gi")  # noqa: S108
    return task


def _requested(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    task.set_cpu_request(given[f"{prefix}_cpus"]).set_memory_request(given[f"{prefix}_memory"])
    task.set_memory_limit(given[f"{prefix}_memory"])
    # Counted from the first start, not between attempts: anything shorter than the step itself means no retry at all.
    return task.set_retry(2, backoff_duration="60s", backoff_factor=2, backoff_max_duration="604800s")


def with_store(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Gives a step that talks to S3 itself the endpoint and keys, from an optional secret."""
    kubernetes.use_secret_as_env(task, STORE_SECRET, {name: name for name in STORE_VARIABLES}, optional=True)
    return task


def parameter_help() -> dict[str, str]:
    """Meaning of every pipeline parameter, by its name: the settings' own help, and that of the cluster's resources."""
    meanings: dict[str, str] = {}
    for prefix, settings in ALL_SETTINGS.items():
        for setting, parameter in parameters(settings).items():
            if setting != "source_fingerprint":
                meanings.setdefault(parameter_name(prefix, setting), parameter.help)
    for prefix in ALL_SETTINGS:
        meanings[f"{prefix}_cpus"] = f"Processors that the {prefix} stage requests, as Kubernetes counts them."
        meanings[f"{prefix}_memory"] = f"Memory that the {prefix} stage requests and may use, as 8Gi."
    for prefix in ("mine", "adapt", "tune", "index", "eval"):
        meanings[f"{prefix}_gpus"] = f"GPUs (and processes) of a pod of the {prefix} stage: 0, 1, 2, 4, 8 or 16."
    return meanings | {"index_parts": PARTS_HELP} | RUN_HELP
