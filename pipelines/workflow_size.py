"""Predicts the size of a pipeline in Argo, which keeps a whole run in one Kubernetes object.

The object holds the run's spec and the status of its nodes. Above 1 MiB Argo compresses the nodes, and Kubeflow's API
server no longer sees the tasks; still above 1 MiB then, the run ends in ERROR ("workflow is longer than maximum
allowed size"). Such a run may fail after hours of training, so its size is reckoned before it starts.

The model (`pipelines.argo`) builds spec and nodes from the compiled pipeline as Kubeflow Pipelines 2.17 and Argo 4.0
do, for a run with one attempt at everything. Against the compiled workflows in Kubeflow's own test data, 139 of 146
specs agree byte for byte but for the constant templates. Against runs on a backend (KFP 2.17.0, Argo 4.0.5, its stock
ConfigMap), in kB:

|                                        | measured | reckoned |
|----------------------------------------|---------:|---------:|
| 9 steps, 165 parameters: spec          |      190 |      189 |
| the same: nodes, nothing cached        |      974 |      928 |
| 8 variants of it: spec                 |      626 |      625 |
| the same: arguments in the spec        |      328 |      328 |
| the same: object with compressed nodes |    1,057 |    1,136 |

The last measurement is the size in Argo's error, which by its source is the whole object, at the first moment when it
was too large; the run was not through then, so the reckoned size of a whole run must lie above it.

What is not in a compiled pipeline is estimated: values that steps hand to each other (64 characters), and times. What is
left out: further attempts, the volumes that `CreatePVC` makes, and what steps note with the artifacts that others read;
the measured pipelines noted a few numbers there, and the steps of this project no longer note any.

    python -m pipelines.workflow_size build/train_retriever.yaml
"""

from __future__ import annotations

import base64
import gzip
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from llm_retriever.errors import InputError
from pipelines.argo.ir import ROOT, Pipeline, argument, dumps, size
from pipelines.argo.nodes import Nodes
from pipelines.argo.spec import arguments, system_size, templates

LIMIT = 1_048_576
"""Bytes of an object that Argo's controller writes, unless its MAX_WORKFLOW_SIZE says otherwise."""
ROOM = LIMIT * 95 // 100
"""Bytes of it that one attempt at everything may take: a further attempt adds nodes, and the model errs a little."""
OTHERS = 3_000
"""Bytes of the object's metadata, and of its status beside the nodes."""


@dataclass(frozen=True)
class WorkflowSize:
    """Bytes of a run's object in Kubernetes.

    Attributes:
        spec: The run's spec.
        arguments: What of it are the components, kept once for all tasks.
        nodes: The status of all nodes at the end.
        compressed: The same as Argo compresses it, gzip in base64.
        tasks: What of `nodes` belongs to a task, by its name behind those of the pipelines around it; `root` = the form
            and the whole pipeline.
    """

    spec: int
    arguments: int
    nodes: int
    compressed: int
    tasks: dict[str, int]

    @property
    def total(self) -> int:
        """The object with its nodes as they are; above LIMIT, Kubeflow shows no tasks."""
        return self.spec + self.nodes + OTHERS

    @property
    def total_compressed(self) -> int:
        """The object with its nodes compressed; above LIMIT, the run dies."""
        return self.spec + self.compressed + OTHERS

    def deciding(self, *, compressed: bool) -> int:
        """`total_compressed` or `total`."""
        return self.total_compressed if compressed else self.total


def workflow_size(
    pipeline_spec: Any,
    platform_spec: Any = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    cached: bool = False,
    items: int = 1,
) -> WorkflowSize:
    """Predicts the size of a run.

    Args:
        pipeline_spec: The PipelineSpec: `pipeline.pipeline_spec`, or the first document of the YAML.
        platform_spec: The PlatformSpec: `pipeline.platform_spec`, or the second document; None = there is none.
        parameters: The run's, by name; defaults stand for those that are not given.
        cached: Whether every task that may come from the cache does.
        items: Iterations of a loop over a list that only the run knows.
    """
    pipeline = Pipeline.of(pipeline_spec, platform_spec, parameters or {})
    shared = size([argument(name, text) for name, text in arguments(pipeline).items()])
    nodes = Nodes.of(pipeline, cached=cached, items=items)
    content = dumps(nodes.found).encode()
    return WorkflowSize(
        spec=shared + size(list(templates(pipeline).values())) + system_size(pipeline),
        arguments=shared,
        nodes=len(content),
        compressed=len(base64.b64encode(gzip.compress(content, 6))),
        tasks={path: sum(size(nodes.found[key]) for key in keys) for path, keys in nodes.tasks.items()},
    )


def check_size(
    measured: WorkflowSize,
    *,
    what: str = "the pipeline",
    compressed: bool = True,
    field: str | None = None,
    file: str | Path | None = None,
    hint: str = "",
) -> None:
    """Raises InputError for a pipeline whose run Argo could not hold.

    Args:
        measured: By `workflow_size`.
        what: Makes the object: `8 variants`.
        compressed: Whether a run is accepted whose nodes Argo must compress, so that Kubeflow shows no tasks.
        field: The error's.
        file: The error's.
        hint: The error's; empty = the heaviest tasks are named.

    Raises:
        InputError: The object is larger than ROOM.
    """
    if measured.deciding(compressed=compressed) <= ROOM:
        return
    heaviest = sorted(measured.tasks.keys() - {ROOT}, key=lambda path: -measured.tasks[path])[:3]
    advice = hint or f"give fewer parameters and inputs to its tasks, above all to {', '.join(heaviest)}"
    raise InputError(_problem(measured, what, compressed), field=field, file=file, hint=advice)


def check_variants(
    pipeline_of: Callable[[int], Any],
    count: int,
    parameters: Mapping[str, Any] | None = None,
    *,
    compressed: bool = True,
    field: str | None = "variants",
    file: str | Path | None = None,
) -> None:
    """Raises InputError for more variants than a run can hold, with the number that it can.

    Args:
        pipeline_of: The pipeline of the first n variants.
        count: All variants.
        parameters: The run's.
        compressed: As for `check_size`.
        field: The error's.
        file: The error's.

    Raises:
        InputError: They are too many.
    """
    measured = _size_of(pipeline_of(count), parameters)
    if measured.deciding(compressed=compressed) > ROOM:
        fits = largest_that_fits(pipeline_of, count - 1, parameters, compressed=compressed)
        hint = (
            f"at most {fits} fit; split the file of variants" if fits > 1 else "not even two fit; train them one by one"
        )
        check_size(measured, what=f"{count} variants", compressed=compressed, field=field, file=file, hint=hint)


def largest_that_fits(
    pipeline_of: Callable[[int], Any],
    most: int,
    parameters: Mapping[str, Any] | None = None,
    *,
    compressed: bool = True,
) -> int:
    """The largest number of variants that a run can hold, of `most`; 0 = none. Arguments as of `check_variants`."""
    fits, beyond = 0, most + 1
    while beyond - fits > 1:
        middle = (fits + beyond) // 2
        if _size_of(pipeline_of(middle), parameters).deciding(compressed=compressed) <= ROOM:
            fits = middle
        else:
            beyond = middle
    return fits


def as_table(measured: WorkflowSize) -> str:
    """Renders a page for people: the parts of the object, and the tasks from the heaviest."""
    parts = {
        "the object": measured.total,
        "the object, its nodes compressed": measured.total_compressed,
        "the spec": measured.spec,
        "of the spec, arguments": measured.arguments,
        "the nodes": measured.nodes,
        "the nodes compressed": measured.compressed,
    }
    rows = [*parts.items(), *sorted(measured.tasks.items(), key=lambda row: -row[1])]
    return "\n".join(f"{bytes_ / 1000:>10,.1f} kB  {name}" for name, bytes_ in rows)


def _size_of(pipeline: Any, parameters: Mapping[str, Any] | None) -> WorkflowSize:
    return workflow_size(pipeline.pipeline_spec, pipeline.platform_spec, parameters)


def _problem(measured: WorkflowSize, what: str, compressed: bool) -> str:
    """The error's first half: `8 variants would make a workflow of 1.40 MB, and Argo has room for 1.00 MB`."""
    size_, how = measured.deciding(compressed=compressed) / 1e6, " after compression" if compressed else ""
    return f"{what} would make a workflow of {size_:.2f} MB{how}, and Argo has room for {ROOM / 1e6:.2f} MB"


if __name__ == "__main__":
    documents = list(yaml.safe_load_all(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(as_table(workflow_size(*documents[:2])))
