"""What Kubeflow sees of the step `fetch_backbone`."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from components.definition import container, documented
from components.fetch_backbone.__main__ import STEP


@dsl.container_component
@documented(STEP)
def fetch_backbone(
    collection: Input[Dataset],
    backbone: Output[Model],
    source: str,
    revision: str,
    scratch_tokens: int,
    scratch_vocabulary: int,
    precision: str,
    seed: int,
    source_fingerprint: str,
) -> dsl.ContainerSpec:
    """Brings the causal LM that everything starts from, or makes a small one from the collection."""
    return container(STEP, "gpu")
