"""One pipeline per step that runs it alone, on artifacts given by URI, and where an earlier run has left these.

The inputs are imported by their URI, so nothing is computed again; the form is that of the step's part of train_retriever.
Every URI must be a version of its own: Kubeflow takes what it once saw under a URI for what is there now.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from components.adapt_backbone.component import adapt_backbone
from components.build_index.component import build_index
from components.definition import with_arguments
from components.evaluate.component import evaluate
from components.fetch_backbone.component import fetch_backbone
from components.mine_negatives.component import mine_negatives
from components.prepare_corpus.component import prepare_corpus
from components.promote.component import promote
from components.tune_retriever.component import tune_retriever
from llm_retriever.errors import InputError
from llm_retriever.settings import parameters
from llm_retriever.store import LocalStore, open_store
from pipelines.local import EXECUTOR_INPUT
from pipelines.stages import (
    FROM_STEPS,
    SETTINGS,
    on_cpu,
    on_gpu,
    on_model_image,
    parameter_help,
    parameter_name,
    stage,
    with_store,
)
from pipelines.train_retriever import train_retriever

PREFIX = "rerun_"
CPU_NODES = {"run_cpu_node_selector", "run_cpu_tolerations"}
REQUESTED: dict[Any, set[str]] = {
    on_cpu: {"run_cpu_image"} | CPU_NODES,
    on_model_image: {"run_gpu_image"} | CPU_NODES,
    on_gpu: {"run_gpu_image", "run_gpu_type", "run_gpu_node_selector", "run_gpu_tolerations"},
}
"""The run's parameters that a step with this request depends on."""
ASKED_FOR = ("production_uri", "production_shards_uri")
"""Settings that the rest of the pipeline answers in a whole run, and the form of a rerun asks for."""
PRODUCERS = {
    "collection": ("prepare-corpus", "collection"),
    "backbone": ("fetch-backbone", "backbone"),
    "training_set": ("mine-negatives", "training_set"),
    "bm25_runs": ("mine-negatives", "bm25_runs"),
    "adapted": ("adapt-backbone", "adapted"),
    "retriever": ("tune-retriever", "retriever"),
    "index": ("build-index", "index"),
    "evaluation": ("evaluate", "evaluation"),
    "refreshed": ("evaluate", "refreshed"),
}
"""Which task of train_retriever makes an artifact, and under which name."""


@dataclasses.dataclass(frozen=True)
class Rerunnable:
    """A step that can be run alone.

    Attributes:
        component: What Kubeflow sees of it.
        prefix: Of its parameters in the pipelines.
        request: What it asks of the cluster.
        cached: Whether its inputs say all that its outputs depend on; not so where it reads or writes something outside.
    """

    component: Any
    prefix: str
    request: Callable[..., dsl.PipelineTask]
    cached: bool = True

    @property
    def settings(self) -> type:
        """The step's settings class."""
        return SETTINGS[self.prefix]

    @property
    def inputs(self) -> dict[str, type]:
        """Artifact class of every input artifact, by name."""
        found = self.component.component_spec.inputs or {}
        kinds = {f"{kind.schema_title}@{kind.schema_version}": kind for kind in (dsl.Artifact, dsl.Dataset, dsl.Model)}
        return {name: kinds[str(spec.type)] for name, spec in found.items() if str(spec.type) in kinds}


STEPS = {
    "prepare_corpus": Rerunnable(prepare_corpus, "corpus", on_cpu, cached=False),
    "fetch_backbone": Rerunnable(fetch_backbone, "backbone", on_model_image, cached=False),
    "mine_negatives": Rerunnable(mine_negatives, "mine", on_gpu),
    "adapt_backbone": Rerunnable(adapt_backbone, "adapt", on_gpu),
    "tune_retriever": Rerunnable(tune_retriever, "tune", on_gpu),
    "build_index": Rerunnable(build_index, "index", on_gpu),
    "evaluate": Rerunnable(evaluate, "eval", on_gpu),
    "promote": Rerunnable(promote, "promote", on_cpu, cached=False),
}


def rerun_of(name: str) -> Any:
    """The pipeline `rerun-<step>`.

    Raises:
        InputError: There is no such step.
    """
    if name not in STEPS:
        raise InputError(f"{name!r} is no step that can be rerun", field="step", mend=f"use one of {', '.join(STEPS)}")
    step, signature = STEPS[name], _form(STEPS[name])

    def rerun(*values: Any) -> None:
        given = dict(zip(signature.parameters, values, strict=True))
        imported = {
            artifact: dsl.importer(artifact_uri=given[f"{artifact}_uri"], artifact_class=kind, reimport=False).output
            for artifact, kind in step.inputs.items()
        }
        settings = stage(given, step.prefix, step.settings, **_constants(step))
        task = with_store(step.request(step.component(**imported, **settings), given, step.prefix))
        if not step.cached:
            task.set_caching_options(False)

    rerun.__name__, rerun.__doc__ = f"{PREFIX}{name}", f"Runs {name} alone, on artifacts of an earlier run."
    rerun.__signature__ = signature  # type: ignore[attr-defined]
    return dsl.pipeline(name=f"rerun-{name.replace('_', '-')}")(with_arguments(_meanings(step, signature))(rerun))


def _constants(step: Rerunnable) -> dict[str, str]:
    own = parameters(step.settings).keys() - ASKED_FOR
    return {name: value for name, value in FROM_STEPS.items() if name in own}


def _form(step: Rerunnable) -> inspect.Signature:
    """A URI for every input, then the step's own parameters, resources and image, as train_retriever has them."""
    own = {parameter_name(step.prefix, setting) for setting in parameters(step.settings)}
    own |= {f"{step.prefix}_{resource}" for resource in ("cpus", "memory", "gpus")}
    own |= REQUESTED[step.request]
    known = inspect.signature(train_retriever.pipeline_func).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    uris = [inspect.Parameter(f"{artifact}_uri", kind, annotation=str) for artifact in step.inputs]
    asked = [
        inspect.Parameter(parameter_name(step.prefix, name), kind, annotation=str, default=FROM_STEPS[name])
        for name in ASKED_FOR
        if name in parameters(step.settings)
    ]
    return inspect.Signature([*uris, *(parameter for parameter in known if parameter.name in own), *asked])


def _meanings(step: Rerunnable, signature: inspect.Signature) -> dict[str, str]:
    uris = {f"{artifact}_uri": f"URI of an earlier run's artifact {artifact}." for artifact in step.inputs}
    asked = {
        parameter_name(step.prefix, name): found.help
        for name, found in parameters(step.settings).items()
        if name in ASKED_FOR
    }
    return uris | {n: text for n, text in (parameter_help() | asked).items() if n in signature.parameters}


def from_run(name: str, run: str, given: Collection[str] = ()) -> dict[str, Any]:
    """What a step of an earlier run was given: URIs of its inputs and its settings, as parameters of `rerun_of(name)`.

    A run on this machine has written down what each step was told. Of a run on a cluster the artifacts are looked up where
    Kubeflow puts them, `<run>/<task>/<execution>/<artifact>`; those of a task that came from the cache lie in another run.

    Args:
        name: The step.
        run: Folder of a run on this machine, or the `s3://…/<pipeline>/<run id>` prefix of one on a cluster.
        given: Parameters that are given by hand, and need not be found.

    Raises:
        InputError: The run does not exist, or lacks an artifact that the step needs.
    """
    step = STEPS[name]
    # The tasks of a pipeline in a pipeline lie in folders of it.
    told = sorted(Path(run).glob(f"**/{name.replace('_', '-')}/{EXECUTOR_INPUT}"))
    if told:
        return _as_told(step, json.loads(told[0].read_text()))
    return {f"{artifact}_uri": _found(artifact, run) for artifact in step.inputs if f"{artifact}_uri" not in given}


def _as_told(step: Rerunnable, message: Mapping[str, Any]) -> dict[str, Any]:
    given = message.get("inputs", {})
    uris = {f"{name}_uri": found["artifacts"][0]["uri"] for name, found in given.get("artifacts", {}).items()}
    own = _form(step).parameters
    values = {parameter_name(step.prefix, name): value for name, value in given.get("parameterValues", {}).items()}
    # Kubeflow's message holds whole numbers as floats.
    return uris | {n: int(v) if own[n].annotation is int else v for n, v in values.items() if n in own}


def _found(artifact: str, run: str) -> str:
    task, output = PRODUCERS[artifact]
    store = open_store(run)
    if isinstance(store, LocalStore) and (store.directory / task / output).exists():
        return str(store.directory / task / output)
    keys = [entry.key for entry in store.list(f"{task}/")] if not isinstance(store, LocalStore) else []
    executions = sorted({key.split("/")[1] for key in keys if key.split("/")[2:3] == [output]})
    if not executions:
        raise InputError(
            f"the run has no artifact {output!r} of {task}",
            file=run,
            mend=f"where that task came from the cache, give {artifact}_uri= of the run that made it",
        )
    return store.uri_of(f"{task}/{executions[-1]}/{output}")
