"""What Kubeflow sees of the step `adapt_backbone`."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components.adapt_backbone.__main__ import STEP
from components.definition import container, documented


@dsl.container_component
@documented(STEP)
def adapt_backbone(
    backbone: Input[Model],
    collection: Input[Dataset],
    training_set: Input[Dataset],
    adapted: Output[Model],
    curves: Output[HTML],
    metrics: Output[Metrics],
    method: str,
    recipe: str,
    tune: str,
    corruption_ratio: float,
    corruption_unit: str,
    attention_block: str,
    loss_on: str,
    embedding: str,
    ar_weight: float,
    bag_weight: float,
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
    """Stage one: prepares the backbone for embedding, by query-likelihood modelling or not at all."""
    return container(STEP, "gpu")
