"""Renders the TrainJob of a training, a Kubeflow Trainer resource, as a plain dictionary.

Fields as `trainer.kubeflow.org/v1alpha1` has them since Trainer 2.3. The runtime (a ClusterTrainingRuntime with a torch
policy) contributes the pods' template and torchrun's variables; `runtimePatches` adds what the step's own pod has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llm_retriever.stores.secret import STORE_SECRET, VARIABLES
from llm_retriever.training.trainjob.nodes import Nodes

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
MANAGER = "llm-retriever/step"
LABELS = "llm-retriever/"
TRAINING_LABEL, ATTEMPT_LABEL = f"{LABELS}training", f"{LABELS}attempt"
POD_LABELS = {"app.kubernetes.io/part-of": "llm-retriever"}
"""What the pods of this project are known by; the manifests' network policy selects them by it."""
ASKED = f"{LABELS}asked"
"""Annotation: digest of what the nodes do and are; a TrainJob of the same training that has another one is out of date."""
CONTAINER = REPLICATED_JOB = "node"
"""What Trainer's runtimes call the container and the group of pods that train."""
PROGRAM = ["python", "-m", "llm_retriever.training.trainjob.node"]
GRACE_SECONDS = 600
"""What a node that is asked to end has for its last checkpoint."""


@dataclass(frozen=True)
class Own:
    """The step's own pod, whose place in the cluster the nodes share.

    Attributes:
        name: Name of the pod; "" = the step runs outside the cluster.
        uid: UID of the pod.
        image: Image of its main container.
        account: Its service account.
        placement: Its node selector, tolerations and pull secrets, as a pod's specification names them.
    """

    name: str = ""
    uid: str = ""
    image: str = ""
    account: str = ""
    placement: dict[str, Any] = field(default_factory=dict)

    @property
    def references(self) -> list[dict[str, Any]]:
        """Owner references: what has them is removed with the pod."""
        if not self.name:
            return []
        return [{"apiVersion": "v1", "kind": "Pod", "name": self.name, "uid": self.uid}]


def specification(nodes: Nodes, uri: str, own: Own) -> dict[str, Any]:
    """The `spec` of a TrainJob.

    Args:
        nodes: What is asked for; its image and account, or those of `own`.
        uri: Where the nodes find their task in the object store.
        own: The step's own pod.
    """
    trainer = {
        "image": nodes.image or own.image,
        "command": PROGRAM,
        "args": [uri],
        "env": [_from_secret(name) for name in VARIABLES],
        "numNodes": nodes.number,
        "numProcPerNode": nodes.processes,
        "resourcesPerNode": _resources(nodes),
    }
    patch = {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [_pods(nodes, own)]}}}}
    return {"runtimeRef": {"name": nodes.runtime}, "trainer": trainer, "runtimePatches": [patch]}


def manifest(
    spec: dict[str, Any], title: str, training: str, asked: str, attempt: int, labels: dict[str, str], own: Own
) -> dict[str, Any]:
    """The whole TrainJob.

    Args:
        spec: As `specification` gives it.
        title: Start of its name, lower-case letters.
        training: Digest of where its checkpoints lie: two with the same must never run at once.
        asked: Digest of what the nodes do and are.
        attempt: From 1; a failed TrainJob may still be there when the next one is made.
        labels: Further labels.
        own: The step's own pod, with which the TrainJob is removed.
    """
    metadata: dict[str, Any] = {
        "name": f"{title}-{training}-{attempt}",
        "labels": {**labels, TRAINING_LABEL: training, ATTEMPT_LABEL: str(attempt)},
        "annotations": {ASKED: asked},
    }
    if own.references:
        metadata["ownerReferences"] = own.references
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "TrainJob", "metadata": metadata, "spec": spec}


def _from_secret(name: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": STORE_SECRET, "key": name, "optional": True}}}


def _resources(nodes: Nodes) -> dict[str, dict[str, str]]:
    devices = {nodes.gpu_type: str(nodes.processes)} if nodes.gpu_type else {}
    limits = {"memory": nodes.memory, **devices}
    return {"requests": {"cpu": nodes.cpus, **limits}, "limits": limits}


def _pods(nodes: Nodes, own: Own) -> dict[str, Any]:
    """The patch of the pods: label, account, place, shared memory for NCCL and loading, and no more rights than a step."""
    container = {
        "name": CONTAINER,
        "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}],  # noqa: S108
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec: dict[str, Any] = {
        "volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}],
        "containers": [container],
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        **own.placement,
    }
    if nodes.account or own.account:
        spec["serviceAccountName"] = nodes.account or own.account
    pod = {"metadata": {"labels": dict(POD_LABELS)}, "spec": spec}
    return {"name": REPLICATED_JOB, "template": {"spec": {"template": pod}}}
