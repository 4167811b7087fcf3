"""What Kubeflow sees of the step `build_index`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.build_index.__main__ import STEP
from components.definition import container, with_settings


@dsl.container_component
@with_settings(STEP)
def build_index(
    retriever: Input[Model],
    collection: Input[Dataset],
    index: Output[Artifact],
) -> dsl.ContainerSpec:
    """Encodes the corpus in shards and describes them as a searchable index."""
    return container(STEP)
