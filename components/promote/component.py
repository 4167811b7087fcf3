"""What Kubeflow sees of the step `promote`."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Model, Output, OutputPath

from components.definition import container, with_settings
from components.promote.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def promote(
    evaluation: Input[Artifact],
    retriever: Input[Model],
    index: Input[Artifact],
    decision: Output[Markdown],
    published_uri: OutputPath(str),
    promoted: OutputPath(bool),
) -> dsl.ContainerSpec:
    """Decides whether the retriever replaces the one in production, and publishes it."""
    return container(STEP)
