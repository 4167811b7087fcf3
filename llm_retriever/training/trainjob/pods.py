"""The state of a TrainJob's pods: how their containers ended, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

INDEX = "batch.kubernetes.io/job-completion-index"
STOPPED = 143
HEALING_SECONDS = 600
"""How long what often heals by itself may last."""


class Trouble(NamedTuple):
    """What a pod's state means for the one who started the training.

    Attributes:
        problem: What is wrong with the node.
        field: The setting at fault.
        hint: What to do about it.
        patience: Seconds that it may last before the step gives up; infinite = it is only told.
    """

    problem: str
    field: str
    hint: str
    patience: float


_NO_IMAGE = Trouble(
    "its image cannot be pulled",
    "node_image",
    "correct the image (run_gpu_image, where the pipeline is submitted), or the pull secrets",
    HEALING_SECONDS,
)
_NO_CONTAINER = Trouble(
    "its container cannot be made",
    "node_runtime",
    "correct the runtime (in a pipeline's form run_node_runtime) or what it refers to",
    HEALING_SECONDS,
)
_MORE_MEMORY = "raise it (in a pipeline's form adapt_node_memory, tune_node_memory), or lower micro_batch_size"
TROUBLES = {
    "ErrImagePull": _NO_IMAGE,
    "ImagePullBackOff": _NO_IMAGE,
    "InvalidImageName": _NO_IMAGE._replace(patience=0),
    "CreateContainerConfigError": _NO_CONTAINER,
    "CreateContainerError": _NO_CONTAINER,
    "RunContainerError": _NO_CONTAINER,
    "OOMKilled": Trouble("it ran out of memory", "node_memory", _MORE_MEMORY, 0),
    "Evicted": Trouble("it was evicted from its machine", "node_memory", "", math.inf),
    "Unschedulable": Trouble("no machine has room for it yet", "nodes", "", math.inf),
}
"""By the reason that Kubernetes gives."""


def index(pod: dict[str, Any]) -> str:
    """Index of the node that a pod is; "?" where the pod does not say."""
    metadata = pod["metadata"]
    return str({**metadata.get("annotations", {}), **metadata.get("labels", {})}.get(INDEX, "?"))


def _statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return list(pod.get("status", {}).get("containerStatuses") or [])


def terminations(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields how a pod's containers ended, now or before their last start."""
    for status in _statuses(pod):
        for state in ("state", "lastState"):
            ended = (status.get(state) or {}).get("terminated")
            if ended:
                yield ended


def exits(pod: dict[str, Any]) -> list[int]:
    """Non-zero exit codes of a pod's containers."""
    return [ended["exitCode"] for ended in terminations(pod) if ended["exitCode"]]


def is_failure(ended: dict[str, Any]) -> bool:
    """Whether a container failed, and was not only stopped."""
    return ended["exitCode"] not in (0, STOPPED)


def is_leaving(job_or_pod: dict[str, Any]) -> bool:
    """Whether it is being deleted."""
    return "deletionTimestamp" in job_or_pod["metadata"]


def has_ended(pod: dict[str, Any]) -> bool:
    """Whether none of a pod's containers runs or is started again."""
    statuses = _statuses(pod)
    return bool(statuses) and all("terminated" in (status.get("state") or {}) for status in statuses)


def troubles(pod: dict[str, Any]) -> Iterator[tuple[Trouble, str]]:
    """Yields what is wrong with a pod, and Kubernetes' words for it."""
    for reason, message in _reasons(pod):
        if reason in TROUBLES:
            yield TROUBLES[reason], message


def _reasons(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields every reason that Kubernetes gives for the state of a pod, and its explanation."""
    status = pod.get("status", {})
    yield status.get("reason", ""), status.get("message", "")
    for condition in status.get("conditions") or []:
        if condition.get("status") == "False":
            yield condition.get("reason", ""), condition.get("message", "")
    for container in _statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        yield waiting.get("reason", ""), waiting.get("message", "")
    for ended in terminations(pod):
        yield ended.get("reason", ""), ended.get("message", "")
