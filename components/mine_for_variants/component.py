"""What Kubeflow sees of the step `mine_for_variants`."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Output

from components.definition import container, with_settings
from components.mine_for_variants.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def mine_for_variants(
    collection: Input[Dataset],
    data: Output[Dataset],
    picture: Output[HTML],
) -> dsl.ContainerSpec:
    """Mines negatives as mine_negatives does; every input of a task counts, so variants get one artifact of all data."""
    return container(STEP)
