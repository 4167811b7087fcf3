"""Whole runs as Argo and Kubeflow 2.17 record them, made from a compiled pipeline and what is to become of its tasks.

Stock Kubeflow has `templateDefaults.retryStrategy`, so every template is a node with attempts below it. Every node's id
ends with the FNV-1a hash of its name; the API's list of tasks holds all nodes, and neither ids nor pods of their own.
"""

from __future__ import annotations

import base64
import gzip
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()
NEVER = "0001-01-01T00:00:00Z"
DRIVER_SECONDS, STEP_SECONDS = 5, 90
# What the API makes of Argo's phases; it has no word for Omitted.
STATES = {"Succeeded": "SUCCEEDED", "Failed": "FAILED", "Error": "FAILED", "Skipped": "SKIPPED", "Running": "RUNNING"}
STATES["Pending"] = "PENDING"
ENDED = {"Succeeded", "Failed", "Error", "Skipped", "Omitted"}
EXIT_2 = "main: Error (exit code 2)"


def fnv(text: str) -> int:
    number = 0x811C9DC5
    for byte in text.encode():
        number = ((number ^ byte) * 0x01000193) % 2**32
    return number


def as_text(seconds: float | None) -> str:
    return NEVER if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class ArgoRun:
    """One run.

    Attributes:
        specification: The compiled pipeline.
        outcomes: By the key of a task: "done" (the default), "cached", "failed", "running", "pending", "driver failed",
            "driver pending", "absent"; "skipped" of a condition; of a loop, the outcomes of its iterations.
        counted: Iterations that a loop's driver counted, where they have not all begun.
        messages: Argo's message about a failed or pending pod, by the key of a task.
    """

    specification: dict[str, Any]
    outcomes: Mapping[str, Any] = field(default_factory=dict)
    id: str = "0f3c1e5a-77aa-4c1d-9b1e-5d1b6a0c2f11"
    name: str = "train-retriever-x7k2p"
    root: str = "s3://models/artifacts"
    counted: int = 0
    messages: Mapping[str, str] = field(default_factory=dict)
    retried: bool = True
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    pods: dict[str, str] = field(default_factory=dict)
    now: float = START

    def __post_init__(self) -> None:
        scope = self._begin(self.name, "", "DAG", "entrypoint")
        self._pod(f"{scope}.root-driver", scope, "system-dag-driver", "Succeeded", DRIVER_SECONDS)
        root = self._begin(f"{scope}.root", scope, "DAG", "root")
        phase = self._dag(self.specification["root"]["dag"], root, "root")
        self._end(root, phase)
        self._end(scope, phase)
        self.phase = phase

    # The nodes.

    def _node(self, name: str, boundary: str, kind: str, template: str, phase: str, **more: Any) -> dict[str, Any]:
        number = self.name if name == self.name else f"{self.name}-{fnv(name)}"
        shown = name.removeprefix(boundary).removeprefix(".") if boundary else name
        boundary_id = {"boundaryID": f"{self.name}-{fnv(boundary)}"} if boundary else {}
        self.nodes[number] = {
            "id": number,
            "name": name,
            "displayName": shown,
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{self.name}",
            "phase": phase,
            **boundary_id,
            "startedAt": as_text(self.now),
            "finishedAt": as_text(self.now) if phase in ENDED else None,
            **more,
        }
        return self.nodes[number]

    def _begin(self, name: str, boundary: str, kind: str, template: str) -> str:
        """A running node, below a node that counts its attempts; returns the name of the attempt."""
        if not self.retried:
            self._node(name, boundary, kind, template, "Running")
            return name
        attempt = f"{name}(0)"
        children = [f"{self.name}-{fnv(attempt)}"]
        self._node(name, boundary, "Retry", template, "Running", children=children)
        self._node(attempt, boundary, kind, template, "Running", nodeFlag={"retried": True})
        return attempt

    def _end(self, attempt: str, phase: str, message: str = "") -> None:
        for name in {attempt, attempt.removesuffix("(0)") if self.retried else attempt}:
            node = next(node for node in self.nodes.values() if node["name"] == name)
            node["phase"] = phase
            node["finishedAt"] = as_text(self.now) if phase in ENDED else None
            said = "No more retries left" if node["type"] == "Retry" and phase == "Failed" else message
            node |= {"message": said} if said else {}

    def _pod(
        self, name: str, boundary: str, template: str, phase: str, seconds: float, message: str = "", **more: Any
    ) -> str:
        attempt = self._begin(name, boundary, "Pod", template)
        self.now += seconds
        self._end(attempt, phase, message)
        node = next(node for node in self.nodes.values() if node["name"] == attempt)
        node |= more
        return f"{self.name}-{template}-{fnv(attempt)}"

    # The tasks.

    def _dag(self, dag: Mapping[str, Any], scope: str, around: str) -> str:
        phases: dict[str, str] = {}
        waiting = dict(dag["tasks"])
        while waiting:
            for key in [k for k, task in waiting.items() if not set(task.get("dependentTasks", ())) & set(waiting)]:
                before = {phases[needed] for needed in waiting.pop(key).get("dependentTasks", ())}
                phases[key] = self._task(key, dag["tasks"][key], scope, before)
        for phase in ("Failed", "Running"):
            if phase in phases.values():
                return phase
        return "Running" if "" in phases.values() else "Succeeded"

    def _task(self, key: str, task: Mapping[str, Any], scope: str, before: set[str]) -> str:
        """Records a task and returns its phase; "" = Argo has not come to it."""
        outcome = self.outcomes.get(key, "done")
        if before & {"Running", "", "Pending"} or outcome == "absent":
            return ""
        if before & {"Failed", "Omitted"}:
            for name in (f"{key}-driver", key):
                self._node(
                    f"{scope}.{name}", scope, "Skipped", name, "Omitted", message="omitted: depends condition not met"
                )
            return "Omitted"
        component = self.specification["components"][task["componentRef"]["name"]]
        if "parameterIterator" in task:
            return self._loop(key, component["dag"], scope, outcome)
        if "dag" in component:
            return self._pipeline(key, component["dag"], scope, outcome)
        return self._step(key, scope, outcome)

    def _pipeline(self, key: str, dag: Mapping[str, Any], scope: str, outcome: str) -> str:
        answers = {"condition": str(outcome != "skipped").lower(), "execution-id": "7"}
        self._pod(
            f"{scope}.{key}-driver", scope, "system-dag-driver", "Succeeded", DRIVER_SECONDS, outputs=listed(answers)
        )
        if outcome == "skipped":
            message = "when 'false != false' evaluated false"
            self._node(f"{scope}.{key}", scope, "Skipped", f"comp-{key}", "Skipped", message=message)
            return "Skipped"
        inner = self._begin(f"{scope}.{key}", scope, "DAG", f"comp-{key}")
        phase = self._dag(dag, inner, key)
        self._end(inner, phase)
        return phase

    def _loop(self, key: str, dag: Mapping[str, Any], scope: str, outcomes: Any) -> str:
        iterations = [outcomes] if isinstance(outcomes, str) else list(outcomes)
        loop = self._begin(f"{scope}.{key}", scope, "DAG", f"comp-{key}-iterator")
        answers = {"iteration-count": str(self.counted or len(iterations)), "execution-id": "8"}
        self._pod(f"{loop}.iteration-driver", loop, "system-dag-driver", "Succeeded", 5, outputs=listed(answers))
        group = self._node(f"{loop}.iteration-iterations", loop, "TaskGroup", f"comp-{key}-iteration", "Running")
        phases = []
        (leaf,) = dag["tasks"]
        for number, outcome in enumerate(iterations):
            item = self._begin(f"{loop}.iteration-iterations({number}:{number})", loop, "DAG", f"comp-{key}-iteration")
            self._pod(f"{item}.iteration-item-driver", item, "system-dag-driver", "Succeeded", 5)
            inner = self._begin(f"{item}.iteration-item", item, "DAG", f"comp-{key}")
            phase = self._step(leaf, inner, outcome)
            for name in (inner, item):
                self._end(name, phase or "Running")
            phases.append(phase or "Running")
        short = len(iterations) < self.counted
        phase = next((p for p in ("Failed", "Running") if p in phases), "Running" if short else "Succeeded")
        group |= {"phase": phase, "finishedAt": as_text(self.now) if phase in ENDED else None}
        self._end(loop, phase)
        return phase

    def _step(self, key: str, scope: str, outcome: str) -> str:
        patch, uri = self._patch(key)
        answers = {"pod-spec-patch": patch, "cached-decision": str(outcome == "cached").lower(), "condition": "true"}
        message = self.messages.get(key, EXIT_2)
        drivers = {"driver failed": "Failed", "driver pending": "Pending"}
        phase, seconds = drivers.get(outcome, "Succeeded"), 0 if outcome == "driver pending" else DRIVER_SECONDS
        more = {"outputs": listed(answers)} if phase == "Succeeded" else {}
        said = "main: Error (exit code 1)" if phase == "Failed" else ""
        pod = self._pod(f"{scope}.{key}-driver", scope, "system-container-driver", phase, seconds, said, **more)
        if phase != "Succeeded":
            self.pods[key] = pod
            if phase == "Failed":
                self._node(
                    f"{scope}.{key}", scope, "Skipped", "x", "Omitted", message="omitted: depends condition not met"
                )
            return phase
        whole = self._begin(f"{scope}.{key}", scope, "DAG", "system-container-executor")
        if outcome == "cached":
            skipped = "when 'true != true' evaluated false"
            self._node(f"{whole}.executor", whole, "Skipped", "system-container-impl", "Skipped", message=skipped)
            self._end(whole, "Succeeded")
            return "Succeeded"
        phase = {"done": "Succeeded", "failed": "Failed", "running": "Running", "pending": "Pending"}[outcome]
        inputs = listed({"pod-spec-patch": patch, "cached-decision": "false"})
        said = message if phase in ("Failed", "Pending") else ""
        template, seconds = "system-container-impl", STEP_SECONDS if phase in ENDED else 0
        self.pods[key] = self._pod(f"{whole}.executor", whole, template, phase, seconds, said, inputs=inputs)
        self.logs[key] = f"{uri}-0"
        self._end(whole, "Running" if phase == "Pending" else phase)
        return "Running" if phase == "Pending" else phase

    def _patch(self, key: str) -> tuple[str, str]:
        """What the driver adds to the executor's pod, and where the pod's log goes."""
        execution = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.id}/{key}/{len(self.nodes)}")
        place = f"{self.root}/{self.specification['pipelineInfo']['name']}/{self.id}/{key}/{execution}"
        outputs = {
            "artifacts": {"executor-logs": {"artifacts": [{"name": "executor-logs", "uri": f"{place}/executor-logs"}]}}
        }
        message = json.dumps(
            {"inputs": {}, "outputs": outputs | {"outputFile": "/tmp/kfp_outputs/output_metadata.json"}}
        )
        command = [
            "/kfp-launcher/launch",
            "--pipeline_name",
            "p",
            "--executor_input",
            message,
            "--component_spec",
            "{}",
            "--",
        ]
        return json.dumps(
            {"containers": [{"name": "main", "image": "i", "command": command}]}
        ), f"{place}/executor-logs"

    # What is served of them.

    def manifest(self, *, compressed: bool = False) -> str:
        """The workflow, as the persistence agent reports it; Argo compresses the nodes of a large one."""
        nodes: dict[str, Any] = {"nodes": self.nodes}
        if compressed:
            nodes = {"compressedNodes": base64.b64encode(gzip.compress(json.dumps(self.nodes).encode())).decode()}
        metadata = {"name": self.name, "namespace": "retrievers", "labels": {"pipeline/runid": self.id}}
        annotations = {"workflows.argoproj.io/pod-name-format": "v2"}
        return json.dumps(
            {"metadata": metadata | {"annotations": annotations}, "status": {"phase": self.phase, **nodes}}
        )

    def task_details(self) -> list[dict[str, Any]]:
        """The API's list of tasks: one for every node, in the order of their ids."""
        return [self._detail(self.nodes[number]) for number in sorted(self.nodes)]

    def _detail(self, node: Mapping[str, Any]) -> dict[str, Any]:
        state = STATES.get(node["phase"])
        children = [{"pod_name": child} for child in node.get("children", ())]
        return {
            "run_id": self.id,
            "task_id": str(uuid.uuid5(uuid.NAMESPACE_URL, node["id"])),
            "display_name": node["displayName"],
            "create_time": as_text(START),
            "start_time": node["startedAt"],
            "end_time": node["finishedAt"] or NEVER,
            **(
                {"state": state, "state_history": [{"update_time": node["startedAt"], "state": state}]} if state else {}
            ),
            **({"child_tasks": children} if children else {}),
        }

    def answer(self, **more: Any) -> dict[str, Any]:
        """The run as `GET /apis/v2beta1/runs/ID` answers."""
        ended = self.phase in ENDED
        return {
            "experiment_id": "experiment-1",
            "run_id": self.id,
            "display_name": "train_retriever 2026-01-02 03:04:05",
            "storage_state": "AVAILABLE",
            "pipeline_spec": {"pipeline_spec": self.specification, "platform_spec": {"platforms": {"kubernetes": {}}}},
            "runtime_config": {"parameters": {}, "pipeline_root": self.root},
            "service_account": "pipeline-runner",
            "created_at": as_text(START),
            "scheduled_at": as_text(START),
            "finished_at": as_text(self.now if ended else 0.0),
            "state": STATES[self.phase],
            "run_details": {"task_details": self.task_details()},
            **more,
        }


def listed(values: Mapping[str, str]) -> dict[str, Any]:
    return {"parameters": [{"name": name, "value": value} for name, value in values.items()]}
