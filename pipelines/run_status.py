"""Status of a run: one row a task, in the pipeline's order, and the failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipelines.planned_tasks import Path, PlannedTask, planned_tasks
from pipelines.workflow_nodes import (
    DRIVER,
    EXECUTOR,
    LOOP,
    TASK,
    Node,
    Workflow,
    from_manifest,
    from_task_list,
    seconds_of,
)

WAITING, RUNNING, DONE, CACHED = "waiting", "running", "done", "cached"
FAILED, STOPPED, SKIPPED, NOT_STARTED, UNKNOWN = "failed", "stopped", "skipped", "not started", "unknown"
RUN_STATES = {
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELED": "stopped",
    "SKIPPED": "skipped",
    "CANCELING": "stopping",
    "RUNNING": "running",
    "PAUSED": "paused",
}
FINISHED = ("succeeded", "failed", "stopped", "skipped")
_LOST = "its workflow is above 1 MiB, and Kubeflow's server has lost sight of the tasks"
_BROKEN = {"Failed", "Error"}
# Of many iterations, the state that says most about all of them.
_TELLING = (FAILED, STOPPED, RUNNING, WAITING, NOT_STARTED, UNKNOWN, DONE, CACHED, SKIPPED)


@dataclass(frozen=True)
class TaskStatus:
    """One task of a run.

    Attributes:
        state: One of this module's words.
        started: Seconds since 1970; None = not yet, or it ran in another run.
        finished: The same; None = it has not ended.
        done: Of a loop, how many iterations have ended well.
        total: Of a loop, how many there are; 0 = the task is in no loop.
        note: Why its pod waits, or which attempt it is.
        pod: That runs now; empty where unknown.
    """

    task: PlannedTask
    state: str
    started: float | None = None
    finished: float | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    pod: str = ""

    @property
    def label(self) -> str:
        """Name of the task, of a loop with its count."""
        return f"{self.task.label} [{self.done}/{self.total}]" if self.total else self.task.label


@dataclass(frozen=True)
class Failure:
    """A part of a task that failed.

    Attributes:
        label: Label of the task.
        keys: Keys of the task, within its run.
        program: Whose messages to look for.
        message: Argo's.
        pod: Name of its pod; empty where unknown.
        logs: URI of its log, without the number of the attempt; empty where unknown.
    """

    label: str
    keys: Path
    program: str = ""
    message: str = ""
    pod: str = ""
    logs: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Attributes:
        state: In plain words; the values of `RUN_STATES`, or waiting.
        pipeline: Name of its pipeline, as in the artifact store.
        root: Pipeline root that the run names; empty = the namespace's.
        schedule: Id of the recurring run that started it; empty = none.
        message: Argo's explanation of the run's end.
        lost: The list of tasks cannot be right, and nothing better was to be had.
        remark: What a reader should know about the list.
    """

    id: str
    name: str
    state: str
    tasks: list[TaskStatus]
    failures: list[Failure] = field(default_factory=list)
    started: float | None = None
    finished: float | None = None
    pipeline: str = ""
    namespace: str = ""
    root: str = ""
    schedule: str = ""
    message: str = ""
    lost: bool = False
    remark: str = ""


def run_status(run: Mapping[str, Any], specification: Mapping[str, Any], manifest: str | None) -> RunStatus:
    """Combines what the API knows of a run.

    Args:
        run: As `GET /apis/v2beta1/runs/ID` answers.
        specification: The compiled pipeline; empty where it cannot be had.
        manifest: Argo's workflow, as the API of v1beta1 answers; None where it is not served.
    """
    state = RUN_STATES.get(run.get("state") or "", WAITING)
    workflow = from_manifest(manifest) if manifest else None
    planned = planned_tasks(specification)
    if workflow is None:
        planned = _by_name(planned)
        details = (run.get("run_details") or {}).get("task_details") or []
        nodes = from_task_list(details, [task.path[-1] for task in planned])
    else:
        planned = planned or _ran(workflow.nodes)
        nodes = workflow.nodes
    tasks = _rows(planned, nodes, state)
    return RunStatus(
        run["run_id"],
        run.get("display_name") or run["run_id"],
        state,
        tasks,
        _failures(planned, workflow, tasks),
        seconds_of(run.get("created_at")),
        seconds_of(run.get("finished_at")),
        specification.get("pipelineInfo", {}).get("name", ""),
        workflow.namespace if workflow else "",
        (run.get("runtime_config") or {}).get("pipeline_root") or specification.get("defaultPipelineRoot", ""),
        run.get("recurring_run_id") or "",
        workflow.message if workflow else "",
        lost=workflow is None and state in FINISHED and _is_lost(tasks, nodes, state),
        remark=f"{_LOST}; this is Argo's own list" if workflow and workflow.compressed else "",
    )


def _by_name(planned: Iterable[PlannedTask]) -> list[PlannedTask]:
    """Merges tasks of the same name, because the API's list does not tell which is which."""
    return list({task.path[-1]: replace(task, path=task.path[-1:], label=task.path[-1]) for task in planned}.values())


def _ran(nodes: Iterable[Node]) -> list[PlannedTask]:
    """Tasks that have run, where nobody knows which there are."""
    executed = sorted((node for node in nodes if node.role == EXECUTOR), key=lambda node: node.started or 0)
    return [PlannedTask(path, "/".join(path)) for path in dict.fromkeys(node.path for node in executed)]


def _is_lost(tasks: Sequence[TaskStatus], nodes: Sequence[Node], state: str) -> bool:
    open_ = any(node.phase in ("Pending", "Running") for node in nodes)
    return open_ or not nodes or (state == "succeeded" and any(task.state == NOT_STARTED for task in tasks))


def with_outputs(status: RunStatus, stored: set[str] | None, why: str) -> RunStatus:
    """Status of a run whose list of tasks is lost, as far as the artifact store tells it.

    Args:
        status: The run.
        stored: Keys of the tasks that left outputs there; None = nobody could look.
        why: What the list rests on, or why nobody could look.
    """

    def known(task: TaskStatus) -> TaskStatus:
        if task.state in (CACHED, FAILED) or (task.state == DONE and (task.finished or stored is None)):
            return task
        if stored is None:
            return replace(task, state=UNKNOWN)
        found = task.task.path[-1] in stored
        note = "has outputs" if found else "no outputs of its own"
        return replace(task, state=DONE if found else UNKNOWN, note=note, finished=None, started=None)

    return replace(status, tasks=[known(task) for task in status.tasks], remark=f"{_LOST}; {why}", lost=False)


def _rows(planned: Sequence[PlannedTask], nodes: Sequence[Node], run: str) -> list[TaskStatus]:
    by_path: dict[Path, list[Node]] = {}
    for node in nodes:
        by_path.setdefault(node.path, []).append(node)
    return [_row(task, by_path, run) for task in planned]


def _row(task: PlannedTask, by_path: Mapping[Path, Sequence[Node]], run: str) -> TaskStatus:
    own = by_path.get(task.path, ())
    iterations = sorted({node.iteration for node in own})
    if not iterations:
        return TaskStatus(task, _state_around(task, by_path, run))
    parts = [_instance(task, [node for node in own if node.iteration == i], run) for i in iterations]
    total = max(len(parts), _counted(task.path, by_path)) if iterations != [()] else 0
    if len(parts) == 1 and total <= 1:
        return parts[0]
    state = min((part.state for part in parts), key=_TELLING.index)
    done = sum(part.state in (DONE, CACHED) for part in parts)
    if state in (DONE, CACHED, SKIPPED) and len(parts) < total:
        state = RUNNING if run not in FINISHED else NOT_STARTED
    telling = next(part for part in parts if part.state == state or part is parts[-1])
    starts = [part.started for part in parts if part.started is not None]
    ends = [part.finished for part in parts if part.finished is not None]
    over = state not in (RUNNING, WAITING)
    return TaskStatus(
        task,
        state,
        min(starts, default=None),
        max(ends, default=None) if over else None,
        done,
        total,
        telling.note,
        telling.pod,
    )


def _counted(path: Path, by_path: Mapping[Path, Sequence[Node]]) -> int:
    """Number of rounds of the innermost loop around a task, as its driver counted; 0 = unknown."""
    for length in range(len(path) - 1, 0, -1):
        for node in by_path.get(path[:length], ()):
            count = (node.outputs or {}).get("iteration-count", "")
            if node.role == DRIVER and count.isdigit() and int(count):
                return int(count)
    return 0


def _state_around(task: PlannedTask, by_path: Mapping[Path, Sequence[Node]], run: str) -> str:
    """State of a task that Argo has not come to: a pipeline around it may have been skipped."""
    for length in range(1, len(task.path)):
        nodes = by_path.get(task.path[:length], ())
        if any(node.role in (TASK, LOOP) and node.phase == "Skipped" for node in nodes):
            return SKIPPED
        # A loop over nothing.
        if any(node.role == LOOP and node.phase == "Succeeded" for node in nodes):
            return SKIPPED
    if run == "succeeded" and task.optional:
        return SKIPPED
    return NOT_STARTED if run in FINISHED else WAITING


def _instance(task: PlannedTask, nodes: Sequence[Node], run: str) -> TaskStatus:
    parts = {node.role: node for node in nodes}
    whole, driver, executor = parts.get(TASK), parts.get(DRIVER), parts.get(EXECUTOR)
    broken = driver if driver and driver.phase in _BROKEN else None
    first = broken or whole or driver or executor
    if first is None:
        return TaskStatus(task, WAITING)
    state = _instance_state(whole, driver, executor)
    if run in FINISHED and state in (RUNNING, WAITING):
        state = STOPPED if run == "stopped" else UNKNOWN
    status = TaskStatus(task, state)
    if state in (DONE, FAILED, STOPPED, RUNNING, WAITING, UNKNOWN):
        finished = first.finished if state not in (RUNNING, WAITING, UNKNOWN) else None
        status = replace(status, started=first.started, finished=finished)
    pod = executor or first
    if state in (RUNNING, WAITING):
        notes = [f"attempt {pod.attempt + 1}"] if pod.attempt else []
        notes += [pod.message] if pod.phase == "Pending" and pod.message else []
        status = replace(status, note=", ".join(notes), pod=pod.pod if pod.phase == "Running" else "")
    return status


def _instance_state(whole: Node | None, driver: Node | None, executor: Node | None) -> str:
    if driver and driver.phase in _BROKEN:
        return _broken(driver)
    if whole is None:
        return NOT_STARTED if driver and driver.phase in ("Omitted", "Skipped") else RUNNING
    if whole.phase in _BROKEN:
        return _broken(executor or whole)
    if whole.phase == "Succeeded":
        answers = [(node.outputs or {}).get("cached-decision") for node in (whole, driver) if node]
        return CACHED if (executor and executor.phase == "Skipped") or "true" in answers else DONE
    if whole.phase in ("Skipped", "Omitted"):
        return SKIPPED if whole.phase == "Skipped" else NOT_STARTED
    return WAITING if executor and executor.phase == "Pending" else RUNNING


def _broken(node: Node) -> str:
    return STOPPED if "shutdown with strategy" in node.message else FAILED


def _failures(planned: Sequence[PlannedTask], workflow: Workflow | None, tasks: Sequence[TaskStatus]) -> list[Failure]:
    """Pods that failed for good; by the API's list alone, the tasks."""
    if workflow is None:
        return [Failure(task.task.label, task.task.path, task.task.program) for task in tasks if task.state == FAILED]
    known = {task.path: task for task in planned}
    failures = []
    for node in workflow.nodes:
        if node.pod and node.phase in _BROKEN and _broken(node) == FAILED:
            task = known.get(node.path) or PlannedTask(node.path, "/".join(node.path) or "the pipeline")
            program = task.program if node.role == EXECUTOR else ""
            of_driver = ", its driver" if node.role == DRIVER else ""
            iteration = f" {list(node.iteration)}" if node.iteration else ""
            label = f"{task.label}{iteration}{of_driver}"
            failures.append(Failure(label, node.path, program, node.message, node.pod, node.logs))
    return failures


def summary(tasks: Iterable[TaskStatus]) -> str:
    """Counts tasks by state, as in ``3 done, 1 running``."""
    return ", ".join(f"{number} {state}" for state, number in Counter(task.state for task in tasks).items())
