"""What Kubeflow sees of the step `encode_corpus`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.definition import container, with_settings
from components.encode_corpus.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def encode_corpus(
    retriever: Input[Model],
    collection: Input[Dataset],
    encoded: Output[Artifact],
) -> dsl.ContainerSpec:
    """Encodes one part of the corpus straight to `shards_uri`, where build_index takes the shards from."""
    return container(STEP)
