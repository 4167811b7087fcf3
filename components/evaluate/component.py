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
    adapted: Input[Model],
    collection: Input[Dataset],
    bm25_runs: Input[Artifact],
    evaluation: Output[Artifact],
    report: Output[HTML],
    summary: Output[Markdown],
    metrics: Output[Metrics],
    refreshed: Output[Artifact],
    splits: str,
    depth: int,
    measures: str,
    primary_metric: str,
    relevance_level: int,
    query_length: int,
    untuned_passages: int,
    encoders: str,
    encoder_passages: int,
    runs: str,
    zero_shot: str,
    zero_shot_query_length: int,
    zero_shot_passage_length: int,
    zero_shot_max_bad_lines: int,
    precision: str,
    production_uri: str,
    production_shards_uri: str,
    rerank_depth: int,
    rerank_from: str,
    rerank_model: str,
    rerank_attention_block: str,
    rerank_interpolation: float,
    rerank_end_of_sequence: bool,
    attention_queries: int,
) -> dsl.ContainerSpec:
    """Searches the evaluation queries, compares with the baselines, and writes the report."""
    return container(STEP, "gpu")
