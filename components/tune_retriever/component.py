"""What Kubeflow sees of the step `tune_retriever`."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.definition import container, with_settings
from components.tune_retriever.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def tune_retriever(
    adapted: Input[Model],
    collection: Input[Dataset],
    training_set: Input[Dataset],
    retriever: Output[Model],
    curves: Output[HTML],
) -> dsl.ContainerSpec:
    """Stage two: contrastive tuning with hard and in-batch negatives."""
    return container(STEP)
