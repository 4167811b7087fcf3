"""What Kubeflow sees of the step `build_index`."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.build_index.__main__ import STEP
from components.definition import container, documented


@dsl.container_component
@documented(STEP)
def build_index(
    retriever: Input[Model],
    collection: Input[Dataset],
    index: Output[Artifact],
    passage_length: int,
    batch_tokens: int,
    shard_passages: int,
    dtype: str,
    precision: str,
    processes: int,
    shards_uri: str,
    kind: str,
    hnsw_m: int,
    hnsw_ef_construction: int,
    hnsw_ef_search: int,
    hnsw_threads: int,
    ivf_lists: int,
    ivf_probes: int,
    pq_bytes: int,
    train_sample: int,
    refine: int,
    memory_gib: float,
) -> dsl.ContainerSpec:
    """Encodes the corpus in shards and describes them as a searchable index."""
    return container(STEP, "gpu")
