"""What Kubeflow sees of the step `promote`."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Model, Output, OutputPath

from components.definition import container, documented
from components.promote.__main__ import STEP


@dsl.container_component
@documented(STEP)
def promote(
    evaluation: Input[Artifact],
    retriever: Input[Model],
    index: Input[Artifact],
    refreshed: Input[Artifact],
    decision: Output[Markdown],
    published_uri: OutputPath(str),
    promoted: OutputPath(bool),
    uri: str,
    split: str,
    metric: str,
    minimum_gain: float,
    minimum_value: float,
    guards: str,
    significance: float,
    refresh: bool,
    source_fingerprint: str,
) -> dsl.ContainerSpec:
    """Decides whether the retriever replaces the one in production, and publishes it."""
    return container(STEP, "cpu")
