"""The nodes of a training on several machines, as the settings of a step ask for them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.methods import ADAPTATIONS, method, overridden
from llm_retriever.settings import AdaptationSettings

LEAST_MEMORY = 10**9
"""Bytes; with less not even the libraries load."""
_UNITS = {
    "": 1,
    **{f"{unit}{i}": (1024 if i else 1000) ** power for power, unit in enumerate("KMGT", 1) for i in ("", "i")},
}
_RESERVED = "llm-retriever/"
_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_WORD}")
_LABEL_VALUE = re.compile(rf"({_WORD})?")
"""What Kubernetes accepts."""


@dataclass(frozen=True)
class Nodes:
    """Several machines that train together.

    Attributes:
        number: Machines.
        processes: Training processes of each, one per GPU.
        cpus: Processors of each, as Kubernetes counts them.
        memory: Memory of each, as `64Gi`.
        gpu_type: Resource name of their accelerator; "" = none.
        image: Their image; "" = that of the step's own pod.
        runtime: Name of a ClusterTrainingRuntime with a torch policy.
        account: Their service account; "" = that of the step's own pod.
        labels: Labels of the TrainJob.
    """

    number: int
    processes: int
    cpus: str
    memory: str
    gpu_type: str
    image: str
    runtime: str
    account: str
    labels: dict[str, str] = field(default_factory=dict)


def nodes_of(settings: Any) -> Nodes | None:
    """The nodes that the settings of `adapt_backbone` or `tune_retriever` ask for; None = the step trains by itself.

    Raises:
        InputError: Other settings do not go with several nodes.
    """
    if settings.nodes == 1:
        return None
    _check_settings(settings)
    _check_pod_size(settings)
    _check_batch_sizes(settings)
    return Nodes(
        number=settings.nodes,
        processes=settings.node_gpus,
        cpus=settings.node_cpus,
        memory=settings.node_memory,
        gpu_type=settings.node_gpu_type,
        image=settings.node_image,
        runtime=settings.node_runtime,
        account=settings.node_account,
        labels=_labels(settings.node_labels),
    )


def _check_settings(settings: Any) -> None:
    if not settings.checkpoint_uri.startswith("s3://"):
        raise InputError(
            "several nodes share nothing but an object store",
            field="checkpoint_uri",
            hint="give s3://bucket/prefix, or use nodes=1",
        )
    if settings.precision == "auto":
        raise InputError(
            "a step that only watches its nodes cannot see their arithmetic", field="precision", hint="say bf16 or fp32"
        )
    for name in ("processes", "gpus"):
        if getattr(settings, name) not in (0, "0", ""):
            raise InputError(
                "the step's own pod trains nothing where several nodes do",
                field=name,
                hint="use 0; node_gpus counts the GPUs of each node",
            )


def _check_pod_size(settings: Any) -> None:
    if float(settings.node_cpus.removesuffix("m")) == 0:
        raise InputError("a node needs processors", field="node_cpus", hint="give for instance 32")
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", settings.node_memory).groups()  # type: ignore[union-attr]
    if float(number) * _UNITS[unit] < LEAST_MEMORY:
        raise InputError(
            f"{settings.node_memory} is too little memory for a node",
            field="node_memory",
            hint="give for instance 256Gi",
        )


def _check_batch_sizes(settings: Any) -> None:
    world = settings.nodes * settings.node_gpus
    for batch_size in _batch_sizes(settings):
        if batch_size % world:
            raise InputError(
                f"{batch_size} examples cannot be divided among {world} processes "
                f"({settings.nodes} nodes of {settings.node_gpus})",
                field="batch_size",
                hint=f"use a multiple of {world}, or fewer nodes or GPUs of each",
            )


def _batch_sizes(settings: Any) -> Iterator[int]:
    """The global batch size of every training that the settings ask for, as its recipe has it or they override it."""
    if not isinstance(settings, AdaptationSettings):
        yield overridden(method(settings.method, settings.recipe), settings).tuning.schedule.batch_size
        return
    for name in settings.method.split("+"):
        if name in ADAPTATIONS:
            yield overridden(ADAPTATIONS[name][settings.recipe], settings).schedule.batch_size


def _labels(text: str) -> dict[str, str]:
    """Parses `a=b, c=d`."""
    labels = {}
    for part in (part.strip() for part in text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if part and not (equals and name):
            raise InputError(
                f"{part!r} is not of the form key=value",
                field="node_labels",
                hint="write for instance kueue.x-k8s.io/queue-name=training",
            )
        if part and not (_LABEL_KEY.fullmatch(name) and _LABEL_VALUE.fullmatch(value)):
            raise InputError(
                f"{part!r} is no label of Kubernetes",
                field="node_labels",
                hint="use letters, digits, dots, hyphens and underscores, at most 63 of them",
            )
        if name.startswith(_RESERVED):
            raise InputError(f"{name} is set by the step itself", field="node_labels", hint="leave it out")
        if part:
            labels[name] = value
    return labels
