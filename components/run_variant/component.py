"""What Kubeflow sees of the step `run_variant`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.definition import container, with_settings
from components.run_variant.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def run_variant(
    backbone: Input[Model],
    data: Input[Dataset],
    evaluation: Output[Artifact],
    retriever: Output[Model],
) -> dsl.ContainerSpec:
    """One variant of a comparison: adapts the backbone, tunes the retriever, builds the index and evaluates."""
    return container(STEP)
