"""What Kubeflow sees of the step `fingerprint_sources`."""

from kfp import dsl
from kfp.dsl import OutputPath

from components.definition import container, with_settings
from components.fingerprint_sources.__main__ import STEP


@dsl.container_component
@with_settings(STEP)
def fingerprint_sources(
    corpus_fingerprint: OutputPath(str),
    backbone_fingerprint: OutputPath(str),
    fingerprint: OutputPath(str),
    changed: OutputPath(bool),
    production_uri: OutputPath(str),
) -> dsl.ContainerSpec:
    """Looks at the corpus and the backbone, never from the cache, so that the steps that read them notice changes."""
    return container(STEP)
