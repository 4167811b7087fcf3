"""Settings of the two training steps, adapt_backbone and tune_retriever."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.methods.adaptation import ADAPTATIONS, SEQUENCES, descriptor
from llm_retriever.methods.retrieval import METHODS, ReadOut
from llm_retriever.settings.common import (
    DIMENSIONS,
    IN_FORM,
    OF_POD,
    UNSET_NUMBER,
    UNSET_OR_NOT_NEGATIVE,
    UNSET_OR_POSITIVE,
    BatchSize,
    CheckpointMinutes,
    CheckpointUri,
    DeepSpeedStage,
    Embedding,
    Epochs,
    Gpus,
    GradientCheckpointing,
    LearningRate,
    LoraAlpha,
    LoraDropout,
    LoraRank,
    MaxSteps,
    MicroBatchSize,
    OneOf,
    PassageLength,
    Precision,
    Processes,
    QueryLength,
    Recipe,
    Seed,
    Switch,
)

Nodes = Annotated[
    int,
    Field(
        ge=1,
        le=64,
        description="Machines that train together. Above 1 the step renders a Kubeflow Trainer TrainJob and only watches "
        "it: its own pod needs no GPU then, and checkpoints must go to s3://.",
    ),
]
NodeGpus = Annotated[int, Field(ge=1, le=64, description="With several nodes: GPUs, and training processes, of each.")]
NodeCpus = Annotated[
    str,
    Field(pattern=r"^\d+(\.\d+)?m?$", description="With several nodes: processors of each, as Kubernetes counts them."),
    OF_POD,
]
NodeMemory = Annotated[
    str,
    Field(pattern=r"^\d+(\.\d+)?([KMGT]i?)?$", description="With several nodes: memory of each, as 64Gi."),
    OF_POD,
]
NodeGpuType = Annotated[
    str,
    Field(
        description="With several nodes: resource name of their accelerator, as the cluster's device plug-in calls it; "
        "empty = they have none."
    ),
    OF_POD,
]
NodeImage = Annotated[
    str,
    Field(description="With several nodes: their image; empty = that of the step's own pod."),
    OF_POD,
]
NodeRuntime = Annotated[
    str,
    Field(
        min_length=1,
        description="With several nodes: the training runtime, a ClusterTrainingRuntime with a torch policy.",
    ),
    OF_POD,
]
NodeAccount = Annotated[
    str,
    Field(description="With several nodes: their service account; empty = that of the step's own pod."),
    OF_POD,
]
NodeLabels = Annotated[
    str,
    Field(
        description="With several nodes: labels of the TrainJob, as key=value, comma separated; for instance "
        "kueue.x-k8s.io/queue-name=training."
    ),
    OF_POD,
]


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What both training steps can be told."""

    method: str = ""
    recipe: Recipe = "default"
    tune: Annotated[
        Literal["", "full", "lora"], Field(description="Train all weights or a LoRA adapter; empty = the recipe's.")
    ] = ""
    embedding: Embedding = ""
    lora_rank: LoraRank = UNSET_NUMBER
    lora_alpha: LoraAlpha = UNSET_NUMBER
    lora_dropout: LoraDropout = -1.0
    query_length: QueryLength = UNSET_NUMBER
    passage_length: PassageLength = UNSET_NUMBER
    epochs: Epochs = -1.0
    max_steps: MaxSteps = UNSET_NUMBER
    learning_rate: LearningRate = -1.0
    batch_size: BatchSize = UNSET_NUMBER
    micro_batch_size: MicroBatchSize = UNSET_NUMBER
    gradient_checkpointing: GradientCheckpointing = ""
    precision: Precision = "auto"
    deepspeed: DeepSpeedStage = "off"
    gpus: Gpus = ""
    processes: Processes = 0
    nodes: Nodes = 1
    node_gpus: NodeGpus = 8
    node_cpus: NodeCpus = "32"
    node_memory: NodeMemory = "256Gi"
    node_gpu_type: NodeGpuType = "nvidia.com/gpu"
    node_image: NodeImage = ""
    node_runtime: NodeRuntime = "torch-distributed"
    node_account: NodeAccount = ""
    node_labels: NodeLabels = ""
    checkpoint_uri: CheckpointUri = ""
    checkpoint_minutes: CheckpointMinutes = 10.0
    seed: Seed = 17


_CLAUSES = dict.fromkeys(["none = leave the backbone as it is", *(descriptor(name).help for name in ADAPTATIONS)])
_OBJECTIVES = f"{'; '.join(_CLAUSES)}."
_LENGTHS = "".join(f"{name}: {descriptor(name).length}; " for name in ADAPTATIONS) + "-1 = the recipe's."


@dataclasses.dataclass(frozen=True)
class AdaptationSettings(TrainingSettings):
    """`adapt_backbone`: stage one, before any contrastive tuning."""

    method: Annotated[
        str,
        OneOf(("none", *ADAPTATIONS, *SEQUENCES)),
        Field(description=_OBJECTIVES),
        IN_FORM,
    ] = "ql"
    corruption_ratio: Annotated[
        float,
        Field(ge=-1, le=1, description="ql, mntp: probability that a word or token is hidden; -1 = the recipe's."),
        UNSET_OR_NOT_NEGATIVE,
    ] = -1.0
    corruption_unit: Annotated[
        Literal["", "word", "token"], Field(description="ql: hide whole words or single tokens; empty = the recipe's.")
    ] = ""
    masking: Annotated[
        Literal["", "bert", "all"],
        Field(description="mntp: BERT's 80/10/10, or all masked; empty = the recipe's."),
    ] = ""
    attention_block: Annotated[
        Switch, Field(description="ql: query tokens see the passage only through [E]: on, off, empty = the recipe's.")
    ] = ""
    loss_on: Annotated[
        Literal["", "query", "all"],
        Field(description="ql: loss on the query's tokens or on all tokens; empty = the recipe's."),
    ] = ""
    ar_weight: Annotated[
        float,
        Field(ge=-1, description="ebae_ebar: weight of the next-token loss on the text; -1 = the recipe's."),
        UNSET_OR_NOT_NEGATIVE,
    ] = -1.0
    bag_weight: Annotated[
        float,
        Field(ge=-1, description="ebae_ebar: weight of the bag-of-words losses; -1 = the recipe's."),
        UNSET_OR_NOT_NEGATIVE,
    ] = -1.0
    passage_length: Annotated[
        int,
        Field(
            ge=-1,
            description=_LENGTHS,
        ),
        UNSET_OR_POSITIVE,
    ] = UNSET_NUMBER


@dataclasses.dataclass(frozen=True)
class TuningSettings(TrainingSettings):
    """`tune_retriever`: stage two, contrastive tuning with hard and in-batch negatives."""

    method: Annotated[
        str,
        OneOf(tuple(METHODS)),
        Field(description="Row of the methods table: prompts, embedding tokens, pooling, attention, recipe."),
        IN_FORM,
    ] = "llm-ql"
    passages_per_query: Annotated[
        int,
        Field(
            ge=-1, description="Passages per query, the positive first, the others hard negatives; -1 = the recipe's."
        ),
        UNSET_OR_POSITIVE,
        IN_FORM,
    ] = UNSET_NUMBER
    temperature: Annotated[
        float, Field(ge=-1, description="Temperature of the contrastive loss; -1 = the recipe's."), UNSET_OR_POSITIVE
    ] = -1.0
    read_out: Annotated[
        ReadOut,
        Field(
            description="llama2vec: whether queries and passages ask for the next text (n) or for themselves (s): query "
            "first; empty = the method's."
        ),
    ] = ""
    gradient_cache: Annotated[
        int,
        Field(
            ge=-1,
            description="Texts encoded at once with gradients, so that large batches fit; 0 = off, -1 = the recipe's.",
        ),
        UNSET_OR_NOT_NEGATIVE,
    ] = UNSET_NUMBER
    mask_positives: Annotated[
        Switch,
        Field(
            description="Leave a query's positives out of the negatives where other queries bring them into the pool: on, "
            "off, empty = the recipe's."
        ),
    ] = ""
    sources: Annotated[
        Literal["", "mixed", "homogeneous"],
        Field(
            description="Whether the queries of an update may come from several data sets (mixed) or from one, where the "
            "training set names them; empty = the recipe's."
        ),
    ] = ""
    distillation_weight: Annotated[
        float,
        Field(
            ge=0,
            description="Weight of the divergence from a teacher's scores, which the training set must hold (score_teacher), "
            "beside the contrastive loss; 0 = off.",
        ),
    ] = 0.0
    distillation_temperature: Annotated[
        float, Field(gt=0, description="What the teacher's scores are divided by before their softmax.")
    ] = 1.0
    matryoshka_dimensions: Annotated[
        str,
        Field(
            description="Numbers of first parts of the vectors that are trained like whole ones, separated by commas; empty = "
            "none."
        ),
        DIMENSIONS,
    ] = ""
    query_length: Annotated[QueryLength, IN_FORM] = UNSET_NUMBER
    passage_length: Annotated[PassageLength, IN_FORM] = UNSET_NUMBER
