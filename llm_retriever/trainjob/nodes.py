"""What a training step asks for where it trains on several nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llm_retriever.errors import InputError


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
        labels: Of the TrainJob.
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
    _refuse_unfit(settings)
    return Nodes(
        number=settings.nodes,
        processes=settings.node_processes,
        cpus=settings.node_cpus,
        memory=settings.node_memory,
        gpu_type=settings.node_gpu_type,
        image=settings.node_image,
        runtime=settings.node_runtime,
        account=settings.node_account,
        labels=_labels(settings.node_labels),
    )


def _refuse_unfit(settings: Any) -> None:
    if not settings.checkpoint_uri.startswith("s3://"):
        raise InputError(
            "several nodes share nothing but an object store",
            field="checkpoint_uri",
            mend="give s3://bucket/prefix, or use nodes=1",
        )
    if settings.precision == "auto":
        raise InputError(
            "a step that only watches cannot see what its nodes compute in", field="precision", mend="say bf16 or fp32"
        )
    if settings.processes:
        raise InputError(
            "the step's own pod trains nothing where several nodes do",
            field="processes",
            mend="use 0; node_processes counts the GPUs of each node",
        )


def _labels(text: str) -> dict[str, str]:
    """`a=b, c=d` as a dictionary."""
    found = {}
    for part in (part.strip() for part in text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if part and not (equals and name):
            raise InputError(
                f"{part!r} is not of the form key=value",
                field="node_labels",
                mend="write for instance kueue.x-k8s.io/queue-name=training",
            )
        if part:
            found[name] = value
    return found
