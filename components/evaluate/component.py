"""What Kubeflow sees of the step `evaluate`."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components.definition import container, with_settings
from components.evaluate.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def evaluate(
    index: Input[Artifact],
    retriever: Input[Model],
    backbone: Input[Model],
    adapted: Input[Model],
    collection: Input[Dataset],
    bm25_runs: Input[Artifact],
    evaluation: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
) -> dsl.ContainerSpec:
    """Searches the evaluation queries, compares with the baselines, and writes the report."""
    return container(STEP)
