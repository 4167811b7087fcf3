"""How a pipeline's flat, prefixed parameters become the settings of its steps, and what a step asks of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_channel import PipelineParameterChannel

from llm_retriever.errors import InputError
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
from pipelines.pods import RETRY_SECONDS, SHARED_MEMORY_VOLUME, PodSettings

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
    "run_gpu_node_selector": 'Labels that a node must have to run the steps with a GPU, as {"pool": "a100"}; {} = any node.',
    "run_gpu_tolerations": "Taints that the steps with a GPU tolerate, as Kubernetes writes them: "
    '[{"key": "nvidia.com/gpu", "operator": "Exists"}]; [] = none.',
    "run_cpu_node_selector": "Labels that a node must have to run the steps without a GPU; {} = any node.",
    "run_cpu_tolerations": "Taints that the steps without a GPU tolerate; [] = none.",
}
ANY_NODE: dict[str, str] = {}
"""Default of the node selectors; an empty one asks for nothing."""
NO_TOLERATIONS: list[dict[str, Any]] = []
TOLERATION_KEYS = ("key", "operator", "value", "effect", "tolerationSeconds")
SHARED = ("seed", "precision", "checkpoint_uri", "checkpoint_minutes", "node_runtime", "node_account", "node_labels")
FROM_STEPS = {"source_fingerprint": "", "production_uri": "", "production_shards_uri": ""}
"""Settings that an earlier step or another stage answers, and what stands for them where there is none."""
RENAMED = {"processes": "gpus", "tune": "weights", "node_processes": "node_gpus"}
OF_THE_RUN = {"node_image": "run_gpu_image", "node_gpu_type": "run_gpu_type"}
STORE_SECRET = "llm-retriever-s3"  # noqa: S105 - the name of a secret, not a secret
STORE_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION")


def parameter_name(prefix: str, setting: str) -> str:
    """The pipeline's name for a step's setting: `mine`, `depth` -> `mine_depth`; seed and the like belong to the run.

    >>> parameter_name("backbone", "source"), parameter_name("tune", "seed"), parameter_name("tune", "processes")
    ('backbone', 'run_seed', 'tune_gpus')
    """
    if setting in SHARED:
        return f"run_{setting}"
    if setting in OF_THE_RUN:
        return OF_THE_RUN[setting]
    if (prefix, setting) == ("backbone", "source"):
        return "backbone"
    return f"{prefix}_{RENAMED.get(setting, setting)}"


def stage(given: Mapping[str, Any], prefix: str, settings: type, **others: Any) -> dict[str, Any]:
    """Arguments of a step: every setting, taken from the pipeline's parameters `given` or from `others`."""
    names = [name for name in parameters(settings) if name not in others]
    return {name: given[parameter_name(prefix, name)] for name in names} | others


def on_cpu(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    """Requests processors and memory, the CPU image and its nodes."""
    return _requested(task, given, prefix, "cpu").set_container_image(given["run_cpu_image"])


def on_model_image(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    """Requests processors and memory, and the image that has torch, but no GPU."""
    return _requested(task, given, prefix, "cpu").set_container_image(given["run_gpu_image"])


def on_gpu(task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str) -> dsl.PipelineTask:
    """Requests GPUs and their nodes, processors and memory, shared memory for data loading and NCCL, and the GPU image."""
    _requested(task, given, prefix, "gpu").set_container_image(given["run_gpu_image"])
    task.set_accelerator_type(given["run_gpu_type"]).set_accelerator_limit(given[f"{prefix}_gpus"])
    _refers_to(task, given["run_gpu_type"], given[f"{prefix}_gpus"])
    size = PodSettings.shared_memory
    kubernetes.empty_dir_mount(task, SHARED_MEMORY_VOLUME, "/dev/shm", medium="Memory", size_limit=size)  # noqa: S108
    if f"{prefix}_nodes" in given:  # What such a step starts on several nodes is owned by its pod, and goes with it.
        kubernetes.use_field_path_as_env(task, "POD_NAME", "metadata.name")
    return task


def _requested(
    task: dsl.PipelineTask, given: Mapping[str, Any], prefix: str, nodes: Literal["cpu", "gpu"]
) -> dsl.PipelineTask:
    task.set_cpu_request(given[f"{prefix}_cpus"]).set_memory_request(given[f"{prefix}_memory"])
    task.set_memory_limit(given[f"{prefix}_memory"])
    _refers_to(task, given[f"{prefix}_cpus"], given[f"{prefix}_memory"])
    kubernetes.add_node_selector_json(task, given[f"run_{nodes}_node_selector"])
    kubernetes.add_toleration_json(task, given[f"run_{nodes}_tolerations"])
    longest = f"{RETRY_SECONDS}s"
    return task.set_retry(PodSettings.retries, backoff_duration="60s", backoff_factor=2, backoff_max_duration=longest)


def _refers_to(task: dsl.PipelineTask, *values: Any) -> None:
    """The compiler forgets to hand what only resources refer to into loops and conditions."""
    task.register_pipeline_channels([value for value in values if isinstance(value, PipelineParameterChannel)])


def check_placement(given: Mapping[str, Any]) -> None:
    """Validates node selectors and tolerations as Kubernetes would, which refuses them only when the pod is made.

    Raises:
        InputError: A selector is not a table of texts, or a toleration has other keys than Kubernetes'.
    """
    for nodes in ("gpu", "cpu"):
        selector, tolerations = given.get(f"run_{nodes}_node_selector", {}), given.get(f"run_{nodes}_tolerations", [])
        if not all(isinstance(value, str) for value in selector.values()):
            mend = 'write values in quotes, as {"pool": "a100"}'
            raise InputError("a label's value is no text", field=f"run_{nodes}_node_selector", mend=mend)
        if not all(isinstance(item, dict) and item and set(item) <= set(TOLERATION_KEYS) for item in tolerations):
            mend = f"give a list of objects with keys of {', '.join(TOLERATION_KEYS)}"
            raise InputError("no tolerations of Kubernetes", field=f"run_{nodes}_tolerations", mend=mend)


def with_store(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Gives a step that talks to S3 itself the endpoint and keys, from an optional secret."""
    kubernetes.use_secret_as_env(task, STORE_SECRET, {name: name for name in STORE_VARIABLES}, optional=True)
    return task


def parameter_help() -> dict[str, str]:
    """Meaning of every pipeline parameter, by its name: the settings' own help, and that of the cluster's resources."""
    meanings: dict[str, str] = {}
    for prefix, settings in ALL_SETTINGS.items():
        for setting, parameter in parameters(settings).items():
            if setting not in FROM_STEPS:
                meanings.setdefault(parameter_name(prefix, setting), parameter.help)
    for prefix in ALL_SETTINGS:
        meanings[f"{prefix}_cpus"] = f"Processors that the {prefix} stage requests, as Kubernetes counts them."
        meanings[f"{prefix}_memory"] = f"Memory that the {prefix} stage requests and may use, as 8Gi."
    for prefix in ("mine", "adapt", "tune", "index", "eval"):
        meanings[f"{prefix}_gpus"] = f"GPUs (and processes) of a pod of the {prefix} stage: 0, 1, 2, 4, 8 or 16."
    return meanings | {"index_parts": PARTS_HELP} | RUN_HELP
