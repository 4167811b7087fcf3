"""Lists the tasks of a compiled pipeline in the order in which they depend on each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

Path = tuple[str, ...]


@dataclass(frozen=True)
class PlannedTask:
    """One step of a pipeline: what runs as a container.

    Attributes:
        path: Keys of the pipelines around it, conditions and loops included, and last its own.
        label: What it is called where all tasks of the pipeline are listed.
        program: Folder under `components/`; its messages begin with it. Empty = another program, as of an importer.
        optional: It stands below a condition or in a loop, so that a run may well do without it.
    """

    path: Path
    label: str
    program: str = ""
    optional: bool = False


def planned_tasks(specification: Mapping[str, Any]) -> list[PlannedTask]:
    """Lists all tasks of a pipeline in topological order; those of a pipeline within it stand where that pipeline stands.

    Args:
        specification: The compiled pipeline, the first document of the YAML.
    """
    found = list(_below(specification.get("root", {}).get("dag", {}), specification))
    tasks = [task for task, _ in found]
    labels = _distinct([names for _, names in found])
    return [replace(task, label=label) for task, label in zip(tasks, labels, strict=True)]


def _below(
    dag: Mapping[str, Any],
    specification: Mapping[str, Any],
    path: Path = (),
    names: Path = (),
    optional: bool = False,
) -> Iterator[tuple[PlannedTask, Path]]:
    tasks = dag.get("tasks", {})
    for key in _ordered(tasks):
        task = tasks[key]
        component = specification.get("components", {}).get(task.get("componentRef", {}).get("name"), {})
        inner = (*names, task.get("taskInfo", {}).get("name") or key)
        spared = optional or "parameterIterator" in task or "condition" in task.get("triggerPolicy", {})
        if "dag" in component:
            yield from _below(component["dag"], specification, (*path, key), inner, spared)
        else:
            yield PlannedTask((*path, key), inner[-1], _program(component, specification), spared), inner


def _ordered(tasks: Mapping[str, Any]) -> list[str]:
    """Sorts the keys of a DAG's tasks, each behind all that it depends on."""
    waiting = {key: set(task.get("dependentTasks", ())) & set(tasks) for key, task in tasks.items()}
    ordered: list[str] = []
    while waiting:
        ready = [key for key, needed in waiting.items() if needed <= set(ordered)] or list(waiting)
        ordered += ready
        waiting = {key: needed for key, needed in waiting.items() if key not in ready}
    return ordered


def _program(component: Mapping[str, Any], specification: Mapping[str, Any]) -> str:
    executors = specification.get("deploymentSpec", {}).get("executors", {})
    container = executors.get(component.get("executorLabel"), {}).get("container", {})
    modules = [word for word in container.get("command", ()) if word.startswith("components.")]
    return modules[0].removeprefix("components.") if modules else ""


def _distinct(names: list[Path]) -> list[str]:
    """Names every path of names: by the last name, with that of the nearest pipeline around it that tells it apart."""
    leaves = Counter(path[-1] for path in names)
    labels = []
    for path in names:
        twins = [other for other in names if other[-1] == path[-1]]
        told_apart = [
            around for around in reversed(path[:-1]) if sum(around in other[:-1] for other in twins) == 1
        ] or [" / ".join(path[:-1])]
        labels.append(path[-1] if leaves[path[-1]] == 1 else f"{told_apart[0]} / {path[-1]}")
    return labels
