"""The components' READMEs say what the components declare."""

from __future__ import annotations

import importlib
import inspect

import pytest

from llm_retriever.settings import parameters
from pipelines.readmes import FOLDER, readme, steps


@pytest.mark.parametrize("step", steps())
def test_the_readme_is_current(step: str) -> None:
    assert (FOLDER / step / "README.md").read_text() == readme(step), "run `make readmes`"


@pytest.mark.parametrize("step", steps())
def test_what_kubeflow_sees_is_what_the_program_takes(step: str) -> None:
    declared = importlib.import_module(f"components.{step}.__main__").STEP
    component = getattr(importlib.import_module(f"components.{step}.component"), step)
    seen = inspect.signature(component.pipeline_func).parameters
    wanted = {name: parameter.type for name, parameter in parameters(declared.settings).items()}
    assert {name: p.annotation for name, p in seen.items() if name in wanted} == wanted
    collected = {name for name in seen if any(name.startswith(f"{prefix}_") for prefix in declared.collected)}
    assert set(seen) == {*wanted, *declared.inputs, *collected, *declared.outputs, *declared.results}
