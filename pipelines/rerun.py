"""Builds a pipeline for each step that runs it alone, on artifacts given by URI, and finds these in an earlier run.

The inputs are imported by their URI, so nothing is computed again; the form is that of the step's part of train_retriever.
Every URI must be a version of its own: Kubeflow takes what it once saw under a URI for what is there now.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from components.definition import with_arguments, with_signature
from llm_retriever.errors import InputError
from llm_retriever.settings import parameters
from llm_retriever.settings.options import OPTIONS, OVERRIDES, option_names
from llm_retriever.stores.opening import LocalStore, open_store
from pipelines import steps
from pipelines.form import SETTINGS, flat_name, flat_names, meanings, signature, typed
from pipelines.journal import EXECUTOR_INPUT
from pipelines.pods import counted
from pipelines.stages import placed, stage

PREFIX = "rerun_"
FROM_STEPS = {"source_fingerprint": "", "production_uri": "", "production_shards_uri": ""}
"""Settings that an earlier step answers in a whole run, and what stands for them where there is none."""
ASKED_FOR = ("production_uri", "production_shards_uri")
"""Settings that the rest of the pipeline answers in a whole run, and the form of a rerun asks for."""
PRODUCERS = {
    artifact: (name.replace("_", "-"), artifact)
    for name in steps.CHAIN
    for artifact in steps.STEPS[name].outputs
    if any(artifact in step.inputs for step in steps.STEPS.values())
}
"""Which task of train_retriever makes an artifact, and under which name."""


@dataclasses.dataclass(frozen=True)
class Rerunnable:
    """A step that can be run alone.

    Attributes:
        component: What Kubeflow sees of it.
        prefix: Prefix of its parameters in the pipelines.
    """

    component: Any
    prefix: str

    @property
    def cached(self) -> bool:
        """Whether its inputs say all that its outputs depend on; in a whole run a fingerprint says what lies outside."""
        return "source_fingerprint" not in parameters(self.settings)

    @property
    def settings(self) -> type:
        """The step's settings class."""
        return SETTINGS[self.prefix]

    @property
    def inputs(self) -> dict[str, type]:
        """Artifact class of every input artifact, by name."""
        artifacts = self.component.component_spec.inputs or {}
        kinds = {f"{kind.schema_title}@{kind.schema_version}": kind for kind in (dsl.Artifact, dsl.Dataset, dsl.Model)}
        return {name: kinds[str(spec.type)] for name, spec in artifacts.items() if str(spec.type) in kinds}


STEPS = {name: Rerunnable(steps.component_of(name), steps.STEPS[name].stage) for name in steps.CHAIN}


def step_of(name: str) -> Rerunnable:
    """Returns a step that can be rerun.

    Raises:
        InputError: There is no such step.
    """
    if name not in STEPS:
        raise InputError(f"{name!r} is no step that can be rerun", field="step", hint=f"use one of {', '.join(STEPS)}")
    return STEPS[name]


def rerun_of(name: str) -> Any:
    """Builds the pipeline `rerun-<step>`.

    Raises:
        InputError: There is no such step.
    """
    step = step_of(name)
    form = _form(step)

    def rerun(*values: Any) -> None:
        given = dict(zip(form.parameters, values, strict=True))
        imported = {
            artifact: dsl.importer(artifact_uri=given[f"{artifact}_uri"], artifact_class=kind, reimport=False).output
            for artifact, kind in step.inputs.items()
        }
        task = step.component(**imported, **stage(given, step.prefix, **_answers(step, given)))
        placed(task, step.prefix)
        if not step.cached:
            task.set_caching_options(False)

    rerun.__name__, rerun.__doc__ = f"{PREFIX}{name}", f"Runs {name} alone, on artifacts of an earlier run."
    documented = with_arguments(_meanings(step, form))(with_signature(rerun, form))
    return counted(dsl.pipeline(name=f"rerun-{name.replace('_', '-')}")(documented))


def _answers(step: Rerunnable, given: Mapping[str, Any]) -> dict[str, Any]:
    """Answers of an earlier step: given in the form, or none."""
    known = parameters(step.settings)
    asked = {name: given[flat_name(step.prefix, name)] for name in ASKED_FOR if name in known}
    return {name: value for name, value in FROM_STEPS.items() if name in known} | asked


def _form(step: Rerunnable) -> inspect.Signature:
    """Builds the form: a URI for every input, then the step's own part."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    uris = [inspect.Parameter(f"{artifact}_uri", kind, annotation=str) for artifact in step.inputs]
    asked = [
        inspect.Parameter(flat_name(step.prefix, name), kind, annotation=str, default=FROM_STEPS[name])
        for name in ASKED_FOR
        if name in parameters(step.settings)
    ]
    return inspect.Signature([*uris, *signature([step.prefix]).parameters.values(), *asked])


def _meanings(step: Rerunnable, form: inspect.Signature) -> dict[str, str]:
    uris = {f"{artifact}_uri": f"URI of an earlier run's artifact {artifact}." for artifact in step.inputs}
    known = parameters(step.settings)
    asked = {flat_name(step.prefix, name): known[name].help for name in ASKED_FOR if name in known}
    return uris | asked | meanings(name for name in form.parameters if name not in {**uris, **asked})


def uris_of(name: str) -> list[str]:
    """Parameters of a rerun beside its settings: URIs of its inputs, and an earlier step's answers."""
    step = step_of(name)
    asked = [flat_name(step.prefix, key) for key in ASKED_FOR if key in parameters(step.settings)]
    return [f"{artifact}_uri" for artifact in step.inputs] + asked


def from_run(name: str, run: str, given: Collection[str] = ()) -> dict[str, Any]:
    """Reads a step's inputs and settings in an earlier run, as parameters of `rerun_of(name)`.

    A run on this machine has written down what each step was told. Of a run on a cluster the artifacts are looked up where
    Kubeflow puts them, `<run>/<task>/<execution>/<artifact>`; those of a task that came from the cache lie in another run.

    Args:
        name: The step.
        run: Folder of a run on this machine, or the `s3://…/<pipeline>/<run id>` prefix of one on a cluster.
        given: Parameters that are given by hand, and need not be found.

    Raises:
        InputError: The run does not exist, or lacks an artifact that the step needs.
    """
    step = step_of(name)
    # The tasks of a pipeline in a pipeline lie in folders of it.
    told = sorted(Path(run).glob(f"**/{name.replace('_', '-')}/{EXECUTOR_INPUT}"))
    if told:
        return _as_told(step, json.loads(told[0].read_text()))
    return {f"{artifact}_uri": _found(artifact, run) for artifact in step.inputs if f"{artifact}_uri" not in given}


def _as_told(step: Rerunnable, message: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names and URIs of the step's message in the earlier run."""
    given = message.get("inputs", {})
    uris = {f"{name}_uri": found["artifacts"][0]["uri"] for name, found in given.get("artifacts", {}).items()}
    told = dict(given.get("parameterValues", {}))
    told |= (told.pop(OPTIONS, None) or {}) | (told.pop(OVERRIDES, None) or {})
    own, known = parameters(step.settings), flat_names()
    # What is not in the message had its default, and a preset must not come before that.
    told = {name: own[name].default for name in option_names(step.settings)} | told
    values = {flat_name(step.prefix, name): value for name, value in told.items() if name in own}
    asked = {flat_name(step.prefix, name) for name in ASKED_FOR}
    # Kubeflow's message holds whole numbers as floats.
    flat = {name: typed(name, value) for name, value in values.items() if name in known}
    return uris | flat | {name: value for name, value in values.items() if name in asked}


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
            hint=f"where that task came from the cache, give {artifact}_uri= of the run that made it",
        )
    return store.uri_of(f"{task}/{executions[-1]}/{output}")
