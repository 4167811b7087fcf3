"""What Kubeflow sees of the step `prepare_corpus`."""

from kfp import dsl
from kfp.dsl import Dataset, Markdown, Output, OutputPath

from components.definition import container, documented
from components.prepare_corpus.__main__ import STEP


@dsl.container_component
@documented(STEP)
def prepare_corpus(
    collection: Output[Dataset],
    statistics: Output[Markdown],
    fingerprint: OutputPath(str),
    uri: str,
    format: str,
    heldout_queries: int,
    deduplicate: bool,
    max_bad_lines: int,
    max_passages: int,
    seed: int,
    source_fingerprint: str,
) -> dsl.ContainerSpec:
    """Turns a source into a validated, de-duplicated, fingerprinted collection."""
    return container(STEP, "cpu")
