"""Predicts the `spec` of a workflow: its arguments and its templates.

A model of Kubeflow Pipelines 2.17 (backend/src/v2/compiler/argocompiler). Three things fill a spec:

- `arguments.parameters`: `components-HASH` and `implementations-HASH` hold a component and its container, as JSON in a
  text. HASH is the container's, so that tasks of equal containers share both. `components-NAME` holds a nested pipeline
  with all its tasks, `components-root` the whole pipeline with its form, and `kubernetes-NAME` what kfp-kubernetes adds
  to a component.
- `templates`: one for the pipeline, one for each nested pipeline, two more for each loop. A template repeats every task
  of its pipeline, as JSON in a text, among the arguments of the task's driver; a loop repeats its own task once more.
- The run's parameters, as JSON in a text, among the arguments of the root's driver.

The templates that are the same in every workflow (drivers, launcher) are counted with the bytes that they have there.
"""

from __future__ import annotations

from pipelines.argo.ir import ROOT, Json, Pipeline, argument, dumps, pod_metadata

SYSTEM_TEMPLATES = {
    "system-container-driver": 2_420,
    "system-dag-driver": 2_230,
    "system-importer": 1_520,
    "executor": 2_400,
    "retry-executor": 3_390,
    "workflow": 650,
}
"""Bytes of what Kubeflow adds: `executor` = both templates of a kind of task, `workflow` = the spec's other fields."""
SIDECAR = {"annotations": {"sidecar.istio.io/inject": "false"}}
AFTER_ALL = "ALL_UPSTREAM_TASKS_COMPLETED"
PARENT = argument("parent-dag-id", "{{inputs.parameters.parent-dag-id}}")


def arguments(pipeline: Pipeline) -> dict[str, str]:
    """Builds `spec.arguments.parameters`: the texts by name."""
    texts: dict[str, str] = {}
    for component in pipeline.used():
        shared = pipeline.shared_name(component)
        texts.setdefault(f"components-{shared}", dumps(pipeline.component(component)))
        for implementation in pipeline.executor(component).values():
            texts.setdefault(f"implementations-{shared}", dumps(implementation))
        config = pipeline.pod_config(component)
        if config is not None:
            texts[f"kubernetes-{component}"] = dumps(config)
    return texts


def templates(pipeline: Pipeline) -> dict[str, Json]:
    """Builds the templates of the pipeline, of nested ones and of loops, by name."""
    templates: dict[str, Json] = {}
    for component in pipeline.used():
        if "dag" in pipeline.component(component):
            templates.update(_pipeline_templates(pipeline, component))
    driver = {"name": "root-driver", "template": "system-dag-driver", "arguments": {"parameters": _run(pipeline)}}
    root = _started(ROOT, ROOT, [argument("condition", "")])
    return templates | {"entrypoint": _template("entrypoint", [driver, root], ())}


def system_size(pipeline: Pipeline) -> int:
    """Bytes of what Kubeflow adds, by the kinds of tasks that there are."""
    kinds, executors = {"system-dag-driver", "workflow"}, set()
    for component in pipeline.used():
        for task in pipeline.tasks(component).values():
            name = task["componentRef"]["name"]
            if "importer" in pipeline.executor(name):
                kinds.add("system-importer")
            elif "container" in pipeline.executor(name):
                kinds.add("system-container-driver")
                counts = tuple(map(len, pod_metadata(pipeline.pod_config(name))))
                executors.add(("retry-executor" if "retryPolicy" in task else "executor", counts))
    return sum(SYSTEM_TEMPLATES[kind] for kind in (*kinds, *(kind for kind, _ in executors)))


def runtime_config(pipeline: Pipeline) -> str:
    """Builds the run's parameters as the root's driver takes them."""
    return dumps({"parameterValues": pipeline.parameters} if pipeline.parameters else {})


def executor_parameters(pipeline: Pipeline, task: Json) -> list[Json]:
    """Builds an executor's parameters beside the patch: annotations and labels of its pod, and the retries."""
    found = []
    config = pipeline.pod_config(task["componentRef"]["name"])
    for kind, items in zip(("annotation", "label"), pod_metadata(config), strict=True):
        for number, (key, value) in enumerate(sorted(items.items()), 1):
            end = f"-{number}" if len(items) > 1 else ""
            found += [argument(f"pod-metadata-{kind}-key{end}", key), argument(f"pod-metadata-{kind}-val{end}", value)]
    retries = task.get("retryPolicy")
    if retries is not None:
        found.append(argument("retry-max-count", str(retries.get("maxRetryCount", 0))))
        found.append(argument("retry-backoff-factor", dumps(retries.get("backoffFactor", 0))))
        for key, name in (("backoffDuration", "duration"), ("backoffMaxDuration", "max-duration")):
            if key in retries:
                found.append(argument(f"retry-backoff-{name}", str(retries[key]).removesuffix("s")))
    return found


def conditional(task: Json) -> bool:
    """Whether a task may be left out of a run."""
    return bool(task.get("triggerPolicy", {}).get("condition"))


def _pipeline_templates(pipeline: Pipeline, component: str) -> dict[str, Json]:
    """Builds the template of a (nested) pipeline, and those of its loops and exit handlers."""
    tasks, found = pipeline.tasks(component), {}
    hooks = {
        awaited: f"exit-hook-{component}-{name}"
        for name, task in tasks.items()
        if _is_exit(task)
        for awaited in task.get("dependentTasks", [])
    }
    entries: list[Json] = []
    for name, task in tasks.items():
        if "parameterIterator" in task:
            found.update(_loop(pipeline, name, task))
            entries.append({"name": name, "template": _loop_name(name, task), **_parameters(PARENT), **_depends(task)})
        elif _is_exit(task):
            hook = f"exit-hook-{component}-{name}"
            found[hook] = _template(hook, _entries(pipeline, name, task), ("parent-dag-id",))
        else:
            entries += _entries(pipeline, name, task)
        if name in hooks:
            entries[-1]["hooks"] = {"exit": {"template": hooks[name], **_parameters(PARENT)}}
    return found | {component: _template(component, entries, ("parent-dag-id",))}


def _entries(pipeline: Pipeline, name: str, task: Json, iteration_of: str = "") -> list[Json]:
    """Builds a task's entries in its pipeline's template: a driver, and what the driver starts.

    Args:
        pipeline: That it belongs to.
        name: As Argo calls it.
        task: Task of the PipelineSpec.
        iteration_of: The loop's name, where this is one iteration.
    """
    component = task["componentRef"]["name"]
    executor, shared = pipeline.executor(component), pipeline.shared_name(component)
    inputs = [_reference("component", f"components-{shared}"), argument("task", dumps(task)), PARENT]
    if "importer" in executor:
        inputs.append(_reference("importer", f"implementations-{shared}"))
        return [{"name": name, "template": "system-importer", **_parameters(*inputs), **_depends(task)}]
    inputs.append(argument("task-name", iteration_of or name))
    if iteration_of:
        inputs.append(argument("iteration-index", "{{inputs.parameters.iteration-index}}"))
    if "container" in executor:
        inputs.append(_reference("container", f"implementations-{shared}"))
        if pipeline.pod_config(component) is not None:
            inputs.append(_reference("kubernetes-config", f"kubernetes-{component}"))
    kind = "container" if "container" in executor else "dag"
    driver = {"name": f"{name}-driver", "template": f"system-{kind}-driver", **_parameters(*inputs)}
    waits = {} if iteration_of or _is_exit(task) else _depends(task)
    return [driver | waits, _executor(pipeline, name, task) if kind == "container" else _nested(name, task)]


def _executor(pipeline: Pipeline, name: str, task: Json) -> Json:
    """Builds the task that Argo runs in a pod as the driver says."""
    inputs = [
        argument("pod-spec-patch", _output(name, "pod-spec-patch")),
        argument("cached-decision", _output(name, "cached-decision")) | {"default": "false"},
    ]
    metadata = pod_metadata(pipeline.pod_config(task["componentRef"]["name"]))
    prefix = f"metadata-{len(metadata[0])}-{len(metadata[1])}-" if any(metadata) else ""
    retried = "retry-" if "retryPolicy" in task else ""
    return {
        "name": name,
        "template": f"{prefix}{retried}system-container-executor",
        "depends": f"{name}-driver.Succeeded",
        **_parameters(*inputs, *executor_parameters(pipeline, task)),
        **_when(name, task),
    }


def _nested(name: str, task: Json) -> Json:
    condition = argument("condition", _output(name, "condition"))
    return _started(name, task["componentRef"]["name"], [condition]) | _when(name, task)


def _started(name: str, template: str, others: list[Json]) -> Json:
    """Builds a task that stands for a pipeline, behind its driver."""
    parent = argument("parent-dag-id", _output(name, "execution-id"))
    return {"name": name, "template": template, "depends": f"{name}-driver.Succeeded", **_parameters(parent, *others)}


def _loop(pipeline: Pipeline, name: str, task: Json) -> dict[str, Json]:
    """Builds both templates of a loop: of all its iterations, and of one."""
    component = task["componentRef"]["name"]
    shared = _reference("component", f"components-{pipeline.shared_name(component)}")
    inputs = _parameters(shared, PARENT, argument("task", dumps(task)), argument("task-name", name))
    driver = {"name": "iteration-driver", "template": "system-dag-driver", **inputs}
    all_, one = _loop_name(name, task), f"{component}-iteration"
    count = {"withSequence": {"count": _output("iteration", "iteration-count")}}
    started = _started("iteration", one, [argument("iteration-index", "{{item}}")]) | _when("iteration", task) | count
    limit = task.get("iteratorPolicy", {}).get("parallelismLimit")
    entries = _entries(pipeline, "iteration-item", task, iteration_of=name)
    return {
        one: _template(one, entries, ("parent-dag-id", "iteration-index")),
        all_: _template(all_, [driver, started | {"name": "iteration-iterations"}], ("parent-dag-id",))
        | ({"parallelism": limit} if limit else {}),
    }


def _loop_name(name: str, task: Json) -> str:
    return f"{task['componentRef']['name']}-{name}-iterator"


def _run(pipeline: Pipeline) -> list[Json]:
    """Builds the arguments of the root's driver."""
    return [
        _reference("component", f"components-{ROOT}"),
        argument("runtime-config", runtime_config(pipeline)),
        argument("driver-type", "ROOT_DAG"),
    ]


def _template(name: str, entries: list[Json], inputs: tuple[str, ...]) -> Json:
    declared = {"parameters": [{"name": item} for item in inputs]} if inputs else {}
    return {"name": name, "inputs": declared, "outputs": {}, "metadata": SIDECAR, "dag": {"tasks": entries}}


def _parameters(*inputs: Json) -> Json:
    return {"arguments": {"parameters": list(inputs)}}


def _reference(name: str, shared: str) -> Json:
    return argument(name, f"{{{{workflow.parameters.{shared}}}}}")


def _output(name: str, key: str) -> str:
    return f"{{{{tasks.{name}-driver.outputs.parameters.{key}}}}}"


def _when(name: str, task: Json) -> Json:
    return {"when": f"{_output(name, 'condition')} != false"} if conditional(task) else {}


def _depends(task: Json) -> Json:
    names = task.get("dependentTasks", [])
    return {"depends": " && ".join(f"{name}.Succeeded" for name in names)} if names else {}


def _is_exit(task: Json) -> bool:
    """Whether a task runs however those end that it depends on, as an exit handler's does."""
    return bool(task.get("triggerPolicy", {}).get("strategy") == AFTER_ALL)
