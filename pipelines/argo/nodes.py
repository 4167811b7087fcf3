"""Predicts the `status.nodes` of a workflow: Argo's record of everything that ran.

A model of Argo Workflows 4.0 with the ConfigMap that Kubeflow Pipelines 2.17 installs. A node keeps what its template
was given, with every reference filled in, and what it returned. The ConfigMap gives a retry strategy to all
templates, so above every node stands another one of type Retry, which repeats both. A task that runs has six nodes:

    tune-retriever-driver          Retry  given component, task, container, kubernetes-config; returned pod-spec-patch
    tune-retriever-driver(0)       Pod    the same
    tune-retriever                 Retry  given pod-spec-patch
    tune-retriever(0)              DAG    the same
    tune-retriever(0).executor     Retry  the same
    tune-retriever(0).executor(0)  Pod    the same

so its patch is kept six times, and its component, task and container twice. A task from the cache has an empty patch
and five nodes, the last of them skipped. A nested pipeline has four nodes of its own and those of its tasks; a loop
has five, and each of its iterations is two and a task. A pipeline that its condition leaves out has three, an
importer two.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.argo.ir import ROOT, Json, Pipeline, argument, digits, dumps
from pipelines.argo.patch import pod_patch
from pipelines.argo.spec import executor_parameters, runtime_config

TIME = "2026-01-01T00:00:00Z"
PARENT = argument("parent-dag-id", "1234")
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda left, right: left == right,
    "!=": lambda left, right: left != right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
}
CONDITION = re.compile(r"(?:\w+\()?inputs\.parameter_values\['([^']+)'\]\)?\s*(==|!=|>=|<=|>|<)\s*('[^']*'|[\w.+-]+)")
"""A comparison of one parameter with a constant, as Kubeflow writes `dsl.If`."""


class Unknown(str):
    """Stands for a value that a step of the run makes: a text as long as a fingerprint."""

    __slots__ = ()


@dataclass
class Nodes:
    """The nodes of a run, as they are made.

    Attributes:
        pipeline: What runs.
        cached: Whether all tasks that may come from the cache do.
        items: Iterations of a loop over what only the run knows.
        found: Nodes by ID.
        tasks: IDs of the nodes by task: its name behind those of the pipelines around it.
    """

    pipeline: Pipeline
    cached: bool = False
    items: int = 1
    found: dict[str, Json] = field(default_factory=dict)
    tasks: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: Pipeline, *, cached: bool = False, items: int = 1) -> Nodes:
        """Builds the nodes of a whole run with one attempt at everything; attributes as of the class."""
        nodes = cls(pipeline, cached, items)
        inputs = [
            argument("component", dumps(pipeline.component(ROOT))),
            _defaulted("runtime-config", runtime_config(pipeline)),
            _defaulted("driver-type", "ROOT_DAG"),
            *map(_defaulted, ("task", "task-name", "parent-dag-id", "iteration-index")),
        ]
        nodes._retried(ROOT, pipeline.run, "DAG", "entrypoint", [])
        nodes._driver(ROOT, f"{pipeline.run}(0).root-driver", "system-dag-driver", inputs)
        nodes._dag("", f"{pipeline.run}(0).root", ROOT, pipeline.parameters)
        return nodes

    def _dag(self, path: str, name: str, component: str, values: Mapping[str, Any]) -> None:
        """A (nested) pipeline and its tasks."""
        self._retried(path or ROOT, name, "DAG", component, [PARENT, argument("condition", "nil")])
        for task_name, task in self.pipeline.tasks(component).items():
            inside = f"{path}/{task_name}" if path else task_name
            self._task(inside, f"{name}(0).{task_name}", task, values)

    def _task(self, path: str, name: str, task: Json, values: Mapping[str, Any]) -> None:
        own = task_values(task, values)
        executor = self.pipeline.executor(task["componentRef"]["name"])
        if "importer" in executor:
            inputs = [*self._described(task), argument("importer", dumps(executor["importer"]))]
            self._retried(path, name, "Pod", "system-importer", inputs, self._ended(name))
        elif "parameterIterator" in task:
            self._loop(path, name, task, own)
        else:
            self._once(path, name, task, own, values, runs=condition_holds(task, own))

    def _once(
        self,
        path: str,
        name: str,
        task: Json,
        own: Json,
        around: Mapping[str, Any],
        index: int = -1,
        *,
        runs: bool = True,
    ) -> None:
        """A task that is no loop, or one iteration: its driver, and what the driver starts."""
        component = task["componentRef"]["name"]
        executor = self.pipeline.executor(component)
        inputs = [*self._described(task), argument("task-name", path), _defaulted("iteration-index", str(index))]
        if "container" not in executor:
            inputs += [_defaulted("runtime-config"), _defaulted("driver-type", "DAG")]
            self._driver(path, f"{name}-driver", "system-dag-driver", inputs)
            if runs:
                self._dag(path, name, component, own)
        else:
            config = self.pipeline.pod_config(component)
            inputs.append(argument("container", dumps(executor["container"])))
            inputs.append(_defaulted("kubernetes-config", "" if config is None else dumps(config)))
            cached = self.cached and bool(task.get("cachingOptions", {}).get("enableCache"))
            patch = pod_patch(self.pipeline, path, component, own, around) if runs and not cached else ""
            self._driver(path, f"{name}-driver", "system-container-driver", inputs, patch, cached)
            if runs:
                self._executor(path, name, task, patch, cached)
        if not runs:
            self._node(path, name, "Skipped", component, [])

    def _executor(self, path: str, name: str, task: Json, patch: str, cached: bool) -> None:
        """What a container's driver starts; from the cache nothing is started."""
        inputs = [argument("pod-spec-patch", patch), *executor_parameters(self.pipeline, task)]
        decision = _defaulted("cached-decision", dumps(cached))
        self._retried(path, name, "DAG", "system-container-executor", [*inputs, decision])
        inner = f"{name}(0).executor"
        if cached:
            self._node(path, inner, "Skipped", "system-container-impl", [])
        else:
            self._retried(path, inner, "Pod", "system-container-impl", inputs, self._ended(inner))

    def _loop(self, path: str, name: str, task: Json, own: Json) -> None:
        component, iterator = task["componentRef"]["name"], task["parameterIterator"]
        self._retried(path, name, "DAG", f"{component}-{name}-iterator", [PARENT])
        inputs = [*self._described(task), argument("task-name", path)]
        self._driver(path, f"{name}(0).iteration-driver", "system-dag-driver", inputs)
        group, template = f"{name}(0).iteration-iterations", f"{component}-iteration"
        runs = condition_holds(task, own)
        self._node(path, group, "TaskGroup" if runs else "Skipped", template, [])
        others = {key: value for key, value in own.items() if key != iterator["items"].get("inputParameter")}
        for number, item in enumerate(loop_items(iterator, own, self.items) if runs else []):
            one = f"{group}({number}:{number})"
            self._retried(path, one, "DAG", template, [PARENT, argument("iteration-index", str(number))])
            values = others | {iterator["itemInput"]: item}
            self._once(f"{path}/{number}", f"{one}(0).iteration-item", task, values, own, number)

    def _driver(
        self, path: str, name: str, template: str, inputs: list[Json], patch: str | None = None, cached: bool = False
    ) -> None:
        """A driver's nodes; `patch` is None for the driver of a pipeline."""
        if patch is None:
            returned = {"execution-id": "1234", "iteration-count": "0", "condition": "nil"}
        else:
            returned = {"pod-spec-patch": patch, "cached-decision": dumps(cached), "condition": "nil"}
        parameters = [
            argument(key, value) | {"valueFrom": {"path": f"/tmp/outputs/{key}", "default": ""}}  # noqa: S108
            for key, value in returned.items()
        ]
        self._retried(path, name, "Pod", template, inputs, {"parameters": parameters, **self._ended(name)})

    def _retried(
        self, path: str, name: str, kind: str, template: str, inputs: list[Json], returned: Json | None = None
    ) -> None:
        """A node and the one of type Retry above it."""
        self._node(path, name, "Retry", template, inputs, returned)
        self._node(path, f"{name}(0)", kind, template, inputs, returned)

    def _node(
        self, path: str, name: str, kind: str, template: str, inputs: list[Json], returned: Json | None = None
    ) -> None:
        key = self._id(name)
        node: Json = {
            "id": key,
            "name": name,
            "displayName": name.rpartition(".")[2],
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{self.pipeline.run}",
            "phase": "Succeeded",
            "boundaryID": self._id(name.rpartition(".")[0]),
            "startedAt": TIME,
            "finishedAt": TIME,
            "progress": "10/10",
            "resourcesDuration": {"cpu": 10, "memory": 100},
            "nodeFlag": {"retried": True},
            "children": [self._id(f"{name}/child")],
        }
        node |= {"hostNodeName": "node-0123456789", "taskResultSynced": True} if kind == "Pod" else {}
        node |= {"outboundNodes": [self._id(f"{name}/out")]} if kind == "DAG" else {}
        node |= {"inputs": {"parameters": inputs}} if inputs else {}
        node |= {"outputs": returned} if returned else {}
        self.found[key] = node
        self.tasks.setdefault(path, []).append(key)

    def _id(self, name: str) -> str:
        """Argo's: the workflow's name and a hash of 32 bits."""
        return f"{self.pipeline.run}-{int(digits(name, 8), 16)}"

    def _ended(self, name: str) -> Json:
        """What is kept of a pod that ended: its exit code, and where Argo archived its log."""
        pod = self._id(name).replace(self.pipeline.run, f"{self.pipeline.run}-system-container-driver")
        key = f"private-artifacts/kubeflow/{self.pipeline.run}/2026/01/01/{pod}/main.log"
        return {"artifacts": [{"name": "main-logs", "s3": {"key": key}}], "exitCode": "0"}

    def _described(self, task: Json) -> list[Json]:
        """What every driver is told about a task, where the spec only refers to the workflow's arguments."""
        component = self.pipeline.component(task["componentRef"]["name"])
        return [argument("component", dumps(component)), argument("task", dumps(task)), PARENT]


def task_values(task: Json, values: Mapping[str, Any]) -> Json:
    """Values of a task's parameters; those that a step of the run makes are `Unknown`.

    Args:
        task: Task of the PipelineSpec.
        values: Values of the parameters of the pipeline around it.
    """
    filled: Json = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "componentInputParameter" in source:
            filled[name] = values.get(source["componentInputParameter"], _unknown(name))
        elif "runtimeValue" in source:
            filled[name] = source["runtimeValue"].get("constant")
        else:
            filled[name] = _unknown(name)
    return filled


def condition_holds(task: Json, own: Mapping[str, Any]) -> bool:
    """Whether a task runs; where its condition is more than a comparison of a known value, it is taken to run."""
    match = CONDITION.fullmatch(task.get("triggerPolicy", {}).get("condition", ""))
    if match is None or isinstance(own.get(match[1], Unknown()), Unknown):
        return True
    value, compared, constant = own[match[1]], COMPARED[match[2]], match[3]
    if constant.startswith("'"):
        return compared(str(value), constant[1:-1])
    if constant in ("true", "false"):
        return compared(value, constant == "true")
    try:
        return compared(float(value), float(constant))
    except (TypeError, ValueError):  # no numbers: the driver would fail, which is not decided here
        return True


def loop_items(iterator: Json, own: Mapping[str, Any], unknown: int) -> list[Any]:
    """Items that a loop runs over; `unknown` stand-ins where only the run knows them."""
    source = iterator["items"]
    if "raw" in source:
        return list(json.loads(source["raw"]))
    value = own.get(source.get("inputParameter", ""))
    return list(value) if isinstance(value, list) else [_unknown(str(number)) for number in range(unknown)]


def _unknown(name: str) -> Unknown:
    return Unknown(digits(name, 64))


def _defaulted(name: str, value: str = "") -> Json:
    """Builds an input of a template that has a default, which the node keeps beside the value."""
    return argument(name, value) | {"default": ""}
