"""A compiled pipeline as data, and JSON as Kubeflow's Go programs write it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from google.protobuf import json_format

ROOT = "root"
Json = dict[str, Any]


def message_dumps(value: Any) -> str:
    """Formats JSON as Protobuf writes a message in Go: without spaces, and whole numbers without a fraction."""
    return json.dumps(_numbers(value), separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def dumps(value: Any) -> str:
    """Formats JSON as Go itself writes it, which also escapes < > and &."""
    return message_dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def size(value: Any) -> int:
    """Bytes of a value as Go's JSON."""
    return len(dumps(value).encode())


def digits(text: str, length: int) -> str:
    """Hexadecimal digits in place of a value that only the run knows; they compress as badly as a real one."""
    return "".join(hashlib.sha256(f"{text}{part}".encode()).hexdigest() for part in range(1 + length // 64))[:length]


def argument(name: str, value: str) -> Json:
    """A parameter of Argo; its values are texts."""
    return {"name": name, "value": value}


def pod_metadata(config: Json | None) -> tuple[Json, Json]:
    """Annotations and labels that kfp-kubernetes gives a pod.

    Args:
        config: What it adds to a component; None = nothing.
    """
    metadata = (config or {}).get("podMetadata", {})
    return metadata.get("annotations", {}), metadata.get("labels", {})


def _numbers(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_dict(message: Any) -> Json:
    return dict(message) if isinstance(message, Mapping) else json_format.MessageToDict(message)


@dataclass(frozen=True)
class Pipeline:
    """A compiled pipeline and the values of its form.

    Attributes:
        spec: The PipelineSpec.
        kubernetes: What kfp-kubernetes adds, by executor label.
        given: Values of the form; defaults stand for those that are not given.
    """

    spec: Json
    kubernetes: Json
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline_spec: Any, platform_spec: Any, parameters: Mapping[str, Any]) -> Pipeline:
        """Builds one from messages of Protobuf, or from both documents of the YAML; the second may be missing."""
        platforms = _as_dict(platform_spec or {}).get("platforms", {})
        kubernetes = platforms.get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
        return cls(_as_dict(pipeline_spec), kubernetes, parameters)

    @property
    def name(self) -> str:
        """The pipeline's name."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def run(self) -> str:
        """The workflow's name: Kubernetes adds five letters."""
        return f"{self.name}-abcde"

    @cached_property
    def parameters(self) -> Json:
        """Every parameter of the form with its value; an optional one without a default is null."""
        declared = self.component(ROOT).get("inputDefinitions", {}).get("parameters", {})
        known = {name: item for name, item in declared.items() if "defaultValue" in item or item.get("isOptional")}
        return {name: item.get("defaultValue") for name, item in known.items()} | dict(self.given)

    def component(self, name: str) -> Json:
        """Returns a component by name; the whole pipeline is one too."""
        component: Json = self.spec[ROOT] if name == ROOT else self.spec["components"][name]
        return component

    def executor(self, component: str) -> Json:
        """Returns the executor of a component: a table with `container` or `importer`; empty for a nested pipeline."""
        label = self.component(component).get("executorLabel", "")
        executor: Json = self.spec.get("deploymentSpec", {}).get("executors", {}).get(label, {})
        return executor

    def pod_config(self, component: str) -> Json | None:
        """Returns what kfp-kubernetes adds to a component; None = nothing."""
        config: Json | None = self.kubernetes.get(self.component(component).get("executorLabel", ""))
        return config

    def tasks(self, component: str) -> dict[str, Json]:
        """Tasks of a nested pipeline by name, sorted; none for another component."""
        return dict(sorted(self.component(component).get("dag", {}).get("tasks", {}).items()))

    def used(self, component: str = ROOT, seen: set[str] | None = None) -> Iterator[str]:
        """Names of the components that a run uses, each once, before the pipelines that use it."""
        seen = set() if seen is None else seen
        if component in seen:
            return
        seen.add(component)
        for task in self.tasks(component).values():
            yield from self.used(task["componentRef"]["name"], seen)
        yield component

    def shared_name(self, component: str) -> str:
        """What follows `components-` in Argo's arguments: components of equal containers share it."""
        container = self.executor(component).get("container")
        return hashlib.sha256(dumps(container).encode()).hexdigest() if container else component
