"""What Kubeflow sees of the step `tune_retriever`."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.definition import container, documented
from components.tune_retriever.__main__ import STEP


@dsl.container_component
@documented(STEP)
def tune_retriever(
    adapted: Input[Model],
    collection: Input[Dataset],
    training_set: Input[Dataset],
    retriever: Output[Model],
    curves: Output[HTML],
    metrics: Output[Metrics],
    method: str,
    recipe: str,
    tune: str,
    passages_per_query: int,
    temperature: float,
    embedding: str,
    read_out: str,
    gradient_cache: int,
    mask_positives: str,
    sources: str,
    distillation_weight: float,
    distillation_temperature: float,
    lora_rank: int,
    lora_alpha: int,
    lora_dropout: float,
    query_length: int,
    passage_length: int,
    epochs: float,
    max_steps: int,
    learning_rate: float,
    batch_size: int,
    micro_batch_size: int,
    gradient_checkpointing: str,
    precision: str,
    deepspeed: str,
    processes: int,
    nodes: int,
    node_processes: int,
    node_cpus: str,
    node_memory: str,
    node_gpu_type: str,
    node_image: str,
    node_runtime: str,
    node_account: str,
    node_labels: str,
    checkpoint_uri: str,
    checkpoint_minutes: float,
    seed: int,
) -> dsl.ContainerSpec:
    """Stage two: contrastive tuning with hard and in-batch negatives."""
    return container(STEP, "gpu")
