"""What Kubeflow sees of the step `evaluate`."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Markdown, Metrics, Model, Output

from components.definition import container, documented
from components.evaluate.__main__ import STEP


@dsl.container_component
@documented(STEP)
def evaluate(
    index: Input[Artifact],
    retriever: Input[Model],
    backbone: Input[Model],
    collection: Input[Dataset],
    bm25_runs: Input[Artifact],
    evaluation: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    splits: str,
    depth: int,
    measures: str,
    primary_metric: str,
    relevance_level: int,
    query_length: int,
    untuned_passages: int,
    precision: str,
) -> dsl.ContainerSpec:
    """Searches the evaluation queries, compares with the baselines, and writes the report."""
    return container(STEP, "gpu")
