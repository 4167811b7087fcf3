"""What Kubeflow sees of the step `prepare_corpus`."""

from kfp import dsl
from kfp.dsl import Dataset, Markdown, Output

from components.definition import container, with_settings
from components.prepare_corpus.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def prepare_corpus(
    collection: Output[Dataset],
    statistics: Output[Markdown],
) -> dsl.ContainerSpec:
    """Turns a source into a validated, de-duplicated, fingerprinted collection."""
    return container(STEP)
