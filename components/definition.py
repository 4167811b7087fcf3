"""What all `component.py` files share: the container's command, and a docstring that documents every argument.

Kubeflow takes the form's help from the docstring. The texts have one source: the step's declaration and its settings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from kfp import dsl

from components.entrypoint import Step
from llm_retriever.settings import parameters

Function = TypeVar("Function", bound=Callable[..., Any])

REFERENCES = Path(__file__).with_name("images.json")


def image(kind: Literal["cpu", "gpu"]) -> str:
    """The reference of an image; `images.json` is the one place that names them."""
    return str(json.loads(REFERENCES.read_text())[kind])


def container(step: Step[Any], kind: Literal["cpu", "gpu"]) -> dsl.ContainerSpec:
    """The container of a step: everything it is told arrives in the executor input."""
    return dsl.ContainerSpec(
        image=image(kind),
        command=["python", "-m", f"components.{step.name}"],
        args=["--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER],
    )


def documented(step: Step[Any]) -> Callable[[Function], Function]:
    """Appends an `Args:` section to a component's docstring, from the step's declaration and settings."""
    meanings = {**step.inputs, **step.outputs, **step.results}
    meanings |= {name: parameter.help for name, parameter in parameters(step.settings).items()}
    return with_arguments(meanings)


def with_arguments(meanings: dict[str, str]) -> Callable[[Function], Function]:
    """Appends an `Args:` section with these meanings to a function's docstring."""

    def decorate(function: Function) -> Function:
        lines = "\n".join(f"    {name}: {' '.join(text.split())}" for name, text in meanings.items())
        function.__doc__ = f"{(function.__doc__ or '').strip()}\n\nArgs:\n{lines}\n"
        return function

    return decorate
