"""What Kubeflow sees of the step `adapt_backbone`."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from components.adapt_backbone.__main__ import STEP
from components.definition import container, with_settings


@dsl.container_component
@with_settings(STEP)
def adapt_backbone(
    backbone: Input[Model],
    collection: Input[Dataset],
    training_set: Input[Dataset],
    adapted: Output[Model],
    curves: Output[HTML],
) -> dsl.ContainerSpec:
    """Stage one: prepares the backbone for embedding, by query-likelihood modelling or not at all."""
    return container(STEP)
