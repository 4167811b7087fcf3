"""A step's requests to the Kubernetes API: TrainJobs, their pods, and the pods' logs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.training.trainjob.manifest import (
    CONTAINER,
    GROUP,
    PLURAL,
    REPLICATED_JOB,
    TRAINING_LABEL,
    VERSION,
    Own,
)

ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POD_NAMES = ("POD_NAME", "KFP_POD_NAME")
"""Environment variables that may hold the name of the step's own pod."""
REQUEST_SECONDS = 60
_AS_SENT: dict[str, Any] = {"_preload_content": False, "_request_timeout": REQUEST_SECONDS}
"""Asks for an answer's bytes: the library's own classes refuse what its version does not know."""
_HINTS = {
    400: "if it names a field: that is one of Kubeflow Trainer 2.3, install this version or a later one",
    403: "give the step's account the role llm-retriever-train-jobs of manifests/base/rbac.yaml",
    404: "install Kubeflow Trainer 2.3 or later in the cluster",
}
_COMMON_TOLERATIONS = "node.kubernetes.io/"


class Client:
    """The Kubernetes API in one namespace.

    Args:
        objects: A `kubernetes.client.CustomObjectsApi`.
        core: A `kubernetes.client.CoreV1Api`.
        namespace: Where everything is.
    """

    def __init__(self, objects: Any, core: Any, namespace: str) -> None:
        self._objects, self._core, self.namespace = objects, core, namespace
        where = {"group": GROUP, "version": VERSION, "namespace": namespace, "plural": PLURAL}
        self._jobs: dict[str, Any] = {**where, "_request_timeout": REQUEST_SECONDS}

    @classmethod
    def connect(cls) -> Client:
        """A client with the account of this pod or, outside a cluster, as the kubeconfig says.

        Raises:
            InputError: There is neither, or the client library is not installed.
        """
        try:
            from kubernetes import client, config
        except ImportError:
            raise InputError(
                "the Kubernetes client is not installed", field="nodes", hint="install kubernetes"
            ) from None
        try:
            config.load_incluster_config()
            namespace = (ACCOUNT_DIRECTORY / "namespace").read_text(encoding="utf-8").strip()
        except (config.ConfigException, OSError):
            try:
                config.load_kube_config()
                namespace = config.list_kube_config_contexts()[1]["context"].get("namespace", "default")
            except config.ConfigException:
                raise InputError(
                    "several nodes need a cluster, and there is neither a pod's service account nor a kubeconfig",
                    field="nodes",
                    hint="run the step in the cluster, set KUBECONFIG, or use nodes=1",
                ) from None
        return cls(client.CustomObjectsApi(), client.CoreV1Api(), namespace)

    def own(self) -> Own:
        """The pod that this step runs in; an empty one outside the cluster, or where the pod does not know its name."""
        name = next((os.environ[key] for key in POD_NAMES if os.environ.get(key)), "")
        if not name:
            return Own()
        from kubernetes.client import ApiException

        try:
            answer = self._core.read_namespaced_pod(name, self.namespace, **_AS_SENT)
        except ApiException as error:
            raise OSError(f"the step's own pod {name} cannot be read: {message_of(error)}") from None
        return _own(json.loads(answer.data))

    def create(self, manifest: dict[str, Any]) -> None:
        """Creates a TrainJob; fields that the cluster's version does not know are refused instead of dropped.

        Raises:
            FileExistsError: There is one of this name, or the cluster was busy with another request.
            InputError: The cluster refuses it.
        """
        from kubernetes.client import ApiException

        try:
            self._objects.create_namespaced_custom_object(body=manifest, field_validation="Strict", **self._jobs)
        except ApiException as error:
            if error.status == 409:
                raise FileExistsError(f"the TrainJob cannot be created: {message_of(error)}") from None
            if error.status >= 500:
                raise OSError(f"the TrainJob cannot be created: {message_of(error)}") from None
            hint = _HINTS.get(error.status, "correct the setting that the message names")
            raise InputError(
                f"the cluster refuses the TrainJob: {message_of(error)}", field="nodes", hint=hint
            ) from None

    def of_training(self, training: str) -> list[dict[str, Any]]:
        """All TrainJobs of a training."""
        from kubernetes.client import ApiException

        try:
            chosen = f"{TRAINING_LABEL}={training}"
            answer = self._objects.list_namespaced_custom_object(label_selector=chosen, **self._jobs)
        except ApiException as error:
            hint = _HINTS.get(error.status)
            if hint is None:
                raise
            raise InputError(f"TrainJobs cannot be listed: {message_of(error)}", field="nodes", hint=hint) from None
        return list(answer["items"])

    def get(self, name: str) -> dict[str, Any]:
        """Returns a TrainJob; raises the cluster's `ApiException`."""
        job: dict[str, Any] = self._objects.get_namespaced_custom_object(name=name, **self._jobs)
        return job

    def adopt(self, name: str, own: Own) -> None:
        """Makes this step's pod the owner of a TrainJob that an earlier pod created."""
        if own.references:
            patch = {"metadata": {"ownerReferences": own.references}}
            self._objects.patch_namespaced_custom_object(name=name, body=patch, **self._jobs)

    def delete(self, name: str) -> None:
        """Deletes a TrainJob, which stays visible until its pods have ended; one that is gone is no error."""
        from kubernetes.client import ApiException

        try:
            self._objects.delete_namespaced_custom_object(name=name, propagation_policy="Foreground", **self._jobs)
        except ApiException as error:
            if error.status != 404:
                raise

    def pods(self, name: str) -> list[dict[str, Any]]:
        """The pods of a TrainJob, oldest first."""
        answer = self._core.list_namespaced_pod(
            self.namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}", **_AS_SENT
        )
        return sorted(json.loads(answer.data)["items"], key=lambda pod: pod["metadata"].get("creationTimestamp") or "")

    def warnings(self, name: str) -> list[str]:
        """Returns the cluster's warnings about the creation of a TrainJob's pods, oldest first."""
        events = []
        # TrainJob and JobSet share a name; the JobSet adds the group of pods and its number for the Job.
        for owner in (name, f"{name}-{REPLICATED_JOB}-0"):
            chosen = f"type=Warning,involvedObject.name={owner}"
            answer = self._core.list_namespaced_event(self.namespace, field_selector=chosen, **_AS_SENT)
            events += json.loads(answer.data)["items"]
        events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
        return [f"{event.get('reason', '')}: {event.get('message', '')}" for event in events]

    def log(self, pod: str, **options: Any) -> str:
        """The log of a node's pod; "" where there is none (yet)."""
        from kubernetes.client import ApiException

        try:
            answer = self._core.read_namespaced_pod_log(pod, self.namespace, container=CONTAINER, **_AS_SENT, **options)
        except ApiException as error:
            if error.status in (400, 404):
                return ""
            raise
        return str(answer.data.decode("utf-8", errors="replace"))


def message_of(error: Any) -> str:
    """Returns the API's reason for a refused request, in one line; for a request that did not get there, the error's name."""
    if not hasattr(error, "status"):
        return type(error).__name__
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


def _own(pod: dict[str, Any]) -> Own:
    spec = pod["spec"]
    main = next((c for c in spec["containers"] if c["name"] == "main"), spec["containers"][0])
    tolerations = [t for t in spec.get("tolerations", []) if not t.get("key", "").startswith(_COMMON_TOLERATIONS)]
    placement = {
        "nodeSelector": spec.get("nodeSelector"),
        "tolerations": tolerations,
        "imagePullSecrets": spec.get("imagePullSecrets"),
    }
    return Own(
        name=pod["metadata"]["name"],
        uid=pod["metadata"]["uid"],
        image=main["image"],
        account=spec.get("serviceAccountName", ""),
        placement={key: value for key, value in placement.items() if value},
    )
