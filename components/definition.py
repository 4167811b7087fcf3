"""Shared parts of all `component.py` files: the container's command, and parameters that are made of the step's settings."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from kfp import dsl

from components.entrypoint import Step
from llm_retriever.settings import Place, parameters
from llm_retriever.settings.options import OPTIONS, OVERRIDES, option_names

Function = TypeVar("Function", bound=Callable[..., Any])

_KIND = inspect.Parameter.POSITIONAL_OR_KEYWORD
PASSED = (Place.FORM, Place.RUN, Place.STEP)
"""Settings that are parameters of a component."""
REFERENCES = Path(__file__).with_name("images.json")


def image(kind: Literal["cpu", "gpu"]) -> str:
    """Reference of an image; `images.json` is the one place that names them."""
    return str(json.loads(REFERENCES.read_text())[kind])


def container(step: Step[Any]) -> dsl.ContainerSpec:
    """The container of a step: everything it is told arrives in the executor input."""
    return dsl.ContainerSpec(
        image=image(step.images[0]),
        command=["python", "-m", f"components.{step.name}"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


def with_settings(step: Step[Any]) -> Callable[[Function], Function]:
    """Adds a step's settings to the parameters of the function that names its artifacts; Kubeflow reads that signature.

    What is not a parameter of the form is in one JSON object, `options`. The parameters of components carry no help: every
    task would hold it several times, in an object that must not exceed 1 MiB.
    """
    kinds: dict[str, Any] = {n: p.type for n, p in parameters(step.settings).items() if p.place in PASSED}
    if option_names(step.stage_settings or step.settings):
        kinds[OPTIONS] = dict
    return lambda function: _with_parameters(function, kinds)


def overridable(component: Any) -> Any:
    """The component with one more parameter, `overrides`: a JSON object of settings that win over all others."""
    return dsl.container_component(_with_parameters(component.pipeline_func, {OVERRIDES: dict}))


def _with_parameters(function: Any, kinds: Mapping[str, Any]) -> Any:
    own = inspect.signature(function)
    added = [inspect.Parameter(name, _KIND, annotation=kind) for name, kind in kinds.items()]
    return with_signature(function, own.replace(parameters=[*own.parameters.values(), *added]))


def with_signature(function: Any, signature: inspect.Signature) -> Any:
    """Gives a function another signature for Kubeflow; it is passed as many arguments as it takes."""
    number = len(inspect.signature(function).parameters)
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(function).parameters.values())

    def seen(*given: Any) -> Any:
        return function(*(given if takes_all else given[:number]))

    functools.update_wrapper(seen, function)
    seen.__signature__ = signature  # type: ignore[attr-defined]
    seen.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    del seen.__wrapped__  # type: ignore[attr-defined]
    return seen


def with_arguments(meanings: dict[str, str]) -> Callable[[Function], Function]:
    """Appends an `Args:` section with these meanings to a function's docstring."""

    def decorate(function: Function) -> Function:
        lines = "\n".join(f"    {name}: {' '.join(text.split())}" for name, text in meanings.items())
        function.__doc__ = f"{(function.__doc__ or '').strip()}\n\nArgs:\n{lines}\n"
        return function

    return decorate
