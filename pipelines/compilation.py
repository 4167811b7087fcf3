"""Compiles a pipeline function to the YAML that Kubeflow takes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from kfp import compiler

from llm_retriever import files
from llm_retriever.errors import InputError
from pipelines import pods
from pipelines.form import Told

NOTHING = Told()
OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def compile_pipeline(
    pipeline: Any,
    target: Path,
    told: Told = NOTHING,
) -> Path:
    """Compiles a pipeline.

    Args:
        pipeline: What `@dsl.pipeline` made.
        target: The YAML.
        told: Values of the form become its defaults; what pods are given is written into them.

    Returns:
        `target`, written atomically.
    """
    return _compiled(pods.applied(pipeline, told.pods, told.settings), target, told.form)


def compile_objects(
    pipeline: Any,
    target: Path,
    told: Told = NOTHING,
    *,
    namespace: str,
    version: str = "",
) -> Path:
    """Compiles a pipeline into Kubernetes objects, for an installation that keeps pipelines as such.

    Args:
        pipeline: What `@dsl.pipeline` made.
        target: The YAML with a `Pipeline` and a `PipelineVersion` of `pipelines.kubeflow.org/v2beta1`.
        told: Values of the form become its defaults; what pods are given is written into them.
        namespace: Namespace of the objects.
        version: Name of the version; empty = the pipeline's name and a digest of what it consists of, because a version
            cannot be changed: the same pipeline makes the same object, and another one a new version.

    Returns:
        `target`, written atomically.

    Raises:
        InputError: Kubernetes would refuse one of the names.
    """
    with_pods, overrides = pods.applied(pipeline, told.pods, told.settings), told.form
    name = with_pods.pipeline_spec.pipeline_info.name
    options = compiler.KubernetesManifestOptions(
        pipeline_name=name,
        pipeline_version_name=version or f"{name}-{_digest(with_pods, overrides)}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    for flag, text in (("--namespace", namespace), ("--version-name", options.pipeline_version_name)):
        if not OBJECT_NAME.fullmatch(text):
            hint = "use lower-case letters, digits, - and ., at most 253, beginning and ending with a letter or digit"
            raise InputError(f"{text!r} cannot name an object of Kubernetes", field=flag, hint=hint)
    return _compiled(with_pods, target, overrides, kubernetes_manifest_format=True, kubernetes_manifest_options=options)


def _digest(pipeline: Any, overrides: dict[str, Any]) -> str:
    """Eight hexadecimal digits of a digest over a pipeline."""
    parts = (pipeline.pipeline_spec, pipeline.platform_spec)
    hashed = hashlib.sha256(b"".join(part.SerializeToString(deterministic=True) for part in parts))
    hashed.update(repr(sorted(overrides.items())).encode())
    return hashed.hexdigest()[:8]


def _compiled(pipeline: Any, target: Path, overrides: dict[str, Any], **options: Any) -> Path:
    with files.atomic_file(target) as draft:
        # The compiler insists on a .yaml name.
        named = draft.with_name(draft.name + ".yaml")
        compiler.Compiler().compile(pipeline, str(named), pipeline_parameters=overrides or None, **options)
        named.replace(draft)
    return target
