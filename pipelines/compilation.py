"""From a pipeline function to the YAML that Kubeflow takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kfp import compiler

from llm_retriever import files


def compile_pipeline(pipeline: Any, target: Path, overrides: dict[str, Any] | None = None) -> Path:
    """Compiles a pipeline; `overrides` (a preset) become the defaults of the form.

    Returns:
        `target`, written atomically.
    """
    with files.atomic_file(target) as draft:
        # The compiler insists on a .yaml name.
        named = draft.with_name(draft.name + ".yaml")
        compiler.Compiler().compile(pipeline, str(named), pipeline_parameters=overrides or None)
        named.replace(draft)
    return target
