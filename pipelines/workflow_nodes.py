"""Reads Argo's record of each task of a run, from the workflow that Kubeflow keeps, or from its thinner list of tasks.

Kubeflow makes several of Argo's nodes out of a task `NAME`: `NAME-driver` resolves inputs and asks the cache, `NAME` is a
DAG around `executor`, the pod. A pipeline within the pipeline is a driver and a DAG of the same kind; a loop adds
`iteration-iterations(INDEX:ITEM)` and `iteration-item`. Where templates may be retried, each of them is a node with
attempts `(0)`, `(1)`, … below it.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.planned_tasks import Path

TASK, DRIVER, EXECUTOR, LOOP = "task", "driver", "executor", "loop"
LOGS = "executor-logs"
_LOOP_PARTS = {"iteration-iterations", "iteration-item"}
_SEGMENT = re.compile(r"(?P<name>[^(]*)(?:\((?P<index>\d+):[^)]*\))?(?:\((?P<attempt>\d+)\))?$")


@dataclass(frozen=True)
class Node:
    """The state of one part of one task.

    Attributes:
        path: Keys of the pipelines around the task, and its own.
        iteration: Indices of the loops around it, outermost first.
        role: The task as a whole, its driver, its executor, or a loop's iterations.
        phase: Argo's word: Pending, Running, Succeeded, Skipped, Omitted, Failed or Error.
        started: Seconds since 1970; None = not yet.
        finished: The same.
        message: Argo's explanation, often empty.
        pod: Name of the pod of the last attempt; empty where none is known.
        logs: URI of its log in the artifact store, without the number of the attempt; empty where unknown.
        attempt: Number of the last attempt, from 0.
        outputs: Parameters that a driver answered with.
    """

    path: Path
    iteration: tuple[int, ...]
    role: str
    phase: str
    started: float | None = None
    finished: float | None = None
    message: str = ""
    pod: str = ""
    logs: str = ""
    attempt: int = 0
    outputs: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Workflow:
    """The nodes of a run.

    Attributes:
        namespace: Where its pods run.
        message: Argo's explanation of the workflow's end.
        compressed: Argo packed the nodes because of their size; Kubeflow's server then sees none.
    """

    nodes: list[Node]
    namespace: str = ""
    message: str = ""
    compressed: bool = False


def from_manifest(text: str) -> Workflow | None:
    """Reads the nodes of a workflow that the API server keeps; None where it cannot be read or has none yet."""
    try:
        manifest = json.loads(text)
        status = manifest.get("status") or {}
        nodes = status.get("nodes") or _unpacked(status.get("compressedNodes") or "")
        metadata = manifest["metadata"]
        name = metadata["name"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    if not nodes:
        return None
    by_id = (metadata.get("annotations") or {}).get("workflows.argoproj.io/pod-name-format") == "v1"
    latest = _latest(_placed(node, name) for node in nodes.values() if node["name"] != name)
    return Workflow(
        [_node(place, attempts, name, by_id) for place, attempts in latest.items()],
        metadata.get("namespace", ""),
        status.get("message") or "",
        not status.get("nodes"),
    )


def _unpacked(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(gzip.decompress(base64.b64decode(text)))) if text else {}
    except (OSError, EOFError, zlib.error) as error:  # packed by another algorithm than Argo's default
        raise ValueError(str(error)) from None


@dataclass(frozen=True)
class _Placed:
    path: Path
    iteration: tuple[int, ...]
    role: str
    around: tuple[int, ...]  # Attempts of the DAGs around it.
    attempt: int  # Its own; -1 = the node that sums them up.
    raw: Mapping[str, Any]


def _placed(raw: Mapping[str, Any], workflow: str) -> _Placed:
    """Finds the task of a node by its name: `WORKFLOW(0).root(0).TASK(0).executor(0)`."""
    matches = [_SEGMENT.match(part) for part in raw["name"].removeprefix(workflow).split(".")[1:]]
    segments = [match.groupdict() for match in matches if match] or [{"name": "", "index": None, "attempt": None}]
    names = [segment["name"] for segment in segments]
    iteration = tuple(int(segment["index"]) for segment in segments if segment["index"] is not None)
    last = names[-1]
    if last == "executor":
        names, role = names[:-1], EXECUTOR
    elif last in _LOOP_PARTS:
        role = LOOP
    elif last.endswith("-driver"):
        names, role = [*names[:-1], last.removesuffix("-driver")], DRIVER
    else:
        role = TASK
    # The name of the loop stands before its machinery, and the root before everything.
    path = tuple(name for name in names if name not in {*_LOOP_PARTS, "iteration"})[1:]
    own = segments[-1]["attempt"]
    around = tuple(int(segment["attempt"] or 0) for segment in segments[:-1])
    return _Placed(path, iteration, role, around, -1 if own is None else int(own), raw)


def _latest(placed: Iterable[_Placed]) -> dict[tuple[Path, tuple[int, ...], str, str], list[_Placed]]:
    """Keeps every part of a task with its attempts, in order, without those of earlier attempts of the DAGs around it."""
    parts: dict[tuple[Path, tuple[int, ...], str, str], list[_Placed]] = defaultdict(list)
    for node in placed:
        kind = node.raw["name"].rsplit(".", 1)[-1].split("(")[0] if node.role in (LOOP, DRIVER) else ""
        parts[node.path, node.iteration, node.role, kind].append(node)
    for place, nodes in parts.items():
        newest = max(node.around for node in nodes)
        parts[place] = sorted((node for node in nodes if node.around == newest), key=lambda node: node.attempt)
    return parts


def _node(place: tuple[Path, tuple[int, ...], str, str], attempts: list[_Placed], workflow: str, by_id: bool) -> Node:
    path, iteration, role, _ = place
    whole, last = attempts[0] if attempts[0].attempt < 0 else attempts[-1], attempts[-1]
    pod = last.raw.get("type") == "Pod"
    return Node(
        path,
        iteration,
        role,
        whole.raw.get("phase") or "Pending",
        seconds_of(whole.raw.get("startedAt")),
        seconds_of(whole.raw.get("finishedAt")),
        last.raw.get("message") or whole.raw.get("message") or "",
        _pod_name(last.raw, workflow, by_id) if pod else "",
        _logs(last.raw) if pod else "",
        max(last.attempt, 0),
        _parameters(last.raw.get("outputs")),
    )


def _pod_name(raw: Mapping[str, Any], workflow: str, by_id: bool) -> str:
    """Name of a pod: workflow, template and the hash that ends the node's id; before Argo 3.5, workflow and hash."""
    prefix = "-".join(part for part in (workflow, raw.get("templateName")) if part)
    return raw["id"] if by_id else f"{prefix[:242]}-{raw['id'].rsplit('-', 1)[-1]}"


def _parameters(part: Mapping[str, Any] | None) -> dict[str, str]:
    return {row["name"]: str(row.get("value", "")) for row in (part or {}).get("parameters") or ()}


def _logs(raw: Mapping[str, Any]) -> str:
    """Where the launcher puts the log: the executor's pod is told with all its outputs."""
    try:
        patch = json.loads(_parameters(raw.get("inputs"))["pod-spec-patch"])
        command = next(row for row in patch["containers"] if row.get("name", "main") == "main")["command"]
        outputs = json.loads(command[command.index("--executor_input") + 1])["outputs"]
        return str(outputs["artifacts"][LOGS]["artifacts"][0]["uri"])
    except (KeyError, ValueError, IndexError, TypeError, StopIteration):
        return ""


def from_task_list(details: Iterable[Mapping[str, Any]], names: Iterable[str]) -> list[Node]:
    """Reads the API's list of tasks, which tells neither pods nor what belongs to what: tasks by name alone.

    Args:
        details: `run_details.task_details` of a run.
        names: Names of the tasks that are looked for.
    """
    known, found = set(names), defaultdict(list)
    rows = list(details)
    for row in rows:
        name = (row.get("display_name") or "").split("(")[0]
        role = DRIVER if name.removesuffix("-driver") in known - {name} else TASK
        # An attempt's row repeats what the row of the task says.
        if name.removesuffix("-driver") in known and "(" not in row["display_name"]:
            found[(name.removesuffix("-driver"),), role].append(row)
    cached = any(row.get("display_name") == "executor" and row.get("state") == "SKIPPED" for row in rows)
    return [
        _listed(path, number, role, row, cached)
        for (path, role), parts in found.items()
        for number, row in enumerate(sorted(parts, key=lambda row: str(row.get("start_time"))))
    ]


def _listed(path: Path, number: int, role: str, row: Mapping[str, Any], cached: bool) -> Node:
    phases = {"SUCCEEDED": "Succeeded", "FAILED": "Failed", "RUNNING": "Running", "SKIPPED": "Skipped"}
    phase = phases.get(row.get("state") or "", "Pending")
    started, finished = seconds_of(row.get("start_time")), seconds_of(row.get("end_time"))
    if phase == "Pending" and finished is not None:  # Kubeflow has no word for Argo's Omitted
        phase = "Omitted"
    # Nothing that starts a pod is over within a second.
    brief = started is not None and finished is not None and finished - started <= 1
    answers = {"cached-decision": "true"} if cached and brief and phase == "Succeeded" else {}
    return Node(path, (number,), role, phase, started, finished, outputs=answers)


def seconds_of(text: Any) -> float | None:
    """Parses a time of Argo's or the API's to seconds since 1970; None for the years 1 and 1970, which mean never."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.timestamp() if aware.year > 1970 else None
