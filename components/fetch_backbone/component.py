"""What Kubeflow sees of the step `fetch_backbone`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.definition import container, with_settings
from components.fetch_backbone.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def fetch_backbone(
    collection: Input[Dataset],
    backbone: Output[Model],
) -> dsl.ContainerSpec:
    """Brings the causal LM that everything starts from, or makes a small one from the collection."""
    return container(STEP)
