"""Kubeflow's message to a step, and the answer to it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from llm_retriever import files
from llm_retriever.errors import InputError

MOUNTS = {"s3://": "/s3/", "minio://": "/minio/", "gs://": "/gcs/"}


@dataclasses.dataclass
class _Artifacts:
    artifacts: list[dict[str, Any]] | None = None


@dataclasses.dataclass
class _Inputs:
    parameterValues: dict[str, Any] | None = None  # noqa: N815
    artifacts: dict[str, _Artifacts] | None = None


@dataclasses.dataclass
class _Outputs:
    outputFile: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")]  # noqa: N815
    artifacts: dict[str, _Artifacts] | None = None


@dataclasses.dataclass
class _Message:
    """Kubeflow's own names; what is empty it leaves out, or says null."""

    outputs: _Outputs
    inputs: _Inputs | None = None


_MESSAGE = TypeAdapter(_Message)


def _first(name: str, value: _Artifacts) -> dict[str, Any]:
    """Returns the first of an artifact's list, which has one.

    Raises:
        InputError: It has none, or one without a place.
    """
    artifact = (value.artifacts or [{}])[0]
    for key in ("uri", "customPath"):
        if not isinstance(artifact.get(key, ""), str) or "\0" in artifact.get(key, ""):
            raise InputError(f"{key} of the artifact is no text", field=name, hint="give the output of an earlier step")
    if not artifact.get("uri"):
        raise InputError("the artifact is missing", field=name, hint="give the output of an earlier step")
    if not isinstance(artifact.get("metadata") or {}, dict):
        raise InputError("its metadata are no object", field=name, hint="give the output of an earlier step")
    return artifact


class ExecutorInput:
    """Kubeflow's message to a step, and the answer to it.

    Args:
        text: What the launcher puts for the placeholder `{{$}}`.
        outputs: Names of all outputs of the step. What Kubeflow does not ask for lies beside its answer, and ends with the pod.

    Raises:
        InputError: The text is not such a message.
    """

    def __init__(self, text: str, outputs: Iterable[str] = ()) -> None:
        try:
            message = _MESSAGE.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(
                f"not an executor input ({where}: {first['msg']})",
                field="--executor-input",
                hint="leave it to Kubeflow",
            ) from None
        given, answers = message.inputs or _Inputs(), message.outputs
        self._target = Path(answers.outputFile)
        self.parameters: dict[str, Any] = given.parameterValues or {}
        self.inputs = {name: local_path(_first(name, value)) for name, value in (given.artifacts or {}).items()}
        self._artifacts = {name: _first(name, value) for name, value in (answers.artifacts or {}).items()}
        self.outputs = {name: local_path(artifact) for name, artifact in self._artifacts.items()}
        self.outputs |= {name: self._target.parent / name for name in outputs if name not in self._artifacts}
        for path in (self._target, *self.outputs.values()):
            path.parent.mkdir(parents=True, exist_ok=True)

    def finish(self, results: Mapping[str, Any], metadata: Mapping[str, Mapping[str, Any]]) -> None:
        """Writes `executor_output.json`; every output artifact is named in it, because an unnamed one is lost locally.

        Args:
            results: Output parameters, by name.
            metadata: What is shown beside an output artifact, by its name.
        """
        artifacts = {name: {"artifacts": [self._answer(name, metadata.get(name, {}))]} for name in self._artifacts}
        answer = {"parameterValues": results, "artifacts": artifacts}
        with files.atomic_file(self._target) as draft:
            draft.write_text(json.dumps(answer, allow_nan=False), encoding="utf-8")

    def _answer(self, name: str, shown: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self._artifacts[name]
        kept: dict[str, Any] = {key: artifact[key] for key in ("name", "uri") if key in artifact}
        metadata: dict[str, Any] = {**(artifact.get("metadata") or {}), **shown}
        return {**kept, "metadata": {key: value for key, value in metadata.items() if _is_presentable(value)}}


def local_path(artifact: Mapping[str, Any]) -> Path:
    """Path where the launcher put an artifact, or wants it to be put."""
    uri = artifact["uri"]
    scheme = next((s for s in MOUNTS if uri.startswith(s)), None)
    mounted = MOUNTS[scheme] + uri[len(scheme) :] if scheme else uri
    return Path(artifact.get("customPath") or mounted)


def _is_presentable(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))
