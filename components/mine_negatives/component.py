"""What Kubeflow sees of the step `mine_negatives`."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components.definition import container, with_settings
from components.mine_negatives.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def mine_negatives(
    collection: Input[Dataset],
    training_set: Output[Dataset],
    bm25_runs: Output[Artifact],
    picture: Output[HTML],
) -> dsl.ContainerSpec:
    """Finds hard negatives for every training query with BM25 and a dense encoder, and makes the sparse baseline runs."""
    return container(STEP)
