"""What Kubeflow sees of the step `fingerprint_sources`."""

from kfp import dsl
from kfp.dsl import OutputPath

from components.definition import container, documented
from components.fingerprint_sources.__main__ import STEP


@dsl.container_component
@documented(STEP)
def fingerprint_sources(
    corpus_fingerprint: OutputPath(str),
    backbone_fingerprint: OutputPath(str),
    part_numbers: OutputPath(list[int]),
    fingerprint: OutputPath(str),
    changed: OutputPath(bool),
    production_uri: OutputPath(str),
    corpus_uri: str,
    backbone: str,
    parts: int,
    published_uri: str,
    recipe: str,
) -> dsl.ContainerSpec:
    """Looks at the corpus and the backbone, never from the cache, so that the steps that read them notice changes."""
    return container(STEP, "cpu")
