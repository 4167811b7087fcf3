"""The components' READMEs say what the components declare."""

from __future__ import annotations

import importlib
import inspect

import pytest

from llm_retriever.settings import Place, parameters
from pipelines.readmes import readme
from pipelines.steps import FOLDER, STEPS


@pytest.mark.parametrize("step", STEPS)
def test_the_readme_is_current(step: str) -> None:
    assert (FOLDER / step / "README.md").read_text() == readme(step), "run `make readmes`"


@pytest.mark.parametrize("step", STEPS)
def test_what_kubeflow_sees_is_what_the_program_takes(step: str) -> None:
    declared = importlib.import_module(f"components.{step}.__main__").STEP
    component = getattr(importlib.import_module(f"components.{step}.component"), step)
    seen = inspect.signature(component.pipeline_func).parameters
    known = parameters(declared.settings)
    passed = {name: p.type for name, p in known.items() if p.place in (Place.FORM, Place.RUN, Place.STEP)}
    if any(p.place is Place.OPTIONS for p in known.values()):
        passed["options"] = dict
    assert {name: p.annotation for name, p in seen.items() if name in passed} == passed
    collected = {name for name in seen if any(name.startswith(f"{prefix}_") for prefix in declared.collected)}
    artifacts = set(seen) - set(passed) - collected
    assert (
        {*declared.inputs, *declared.results} <= artifacts <= {*declared.inputs, *declared.outputs, *declared.results}
    )
    # What Kubeflow is not shown is a page or a table that is also in another output.
    assert set(declared.outputs) - artifacts <= {"metrics", "statistics", "summary"}
