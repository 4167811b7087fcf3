"""Settings that several steps share, and the values that mean "the recipe decides"."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

UNSET_NUMBER = -1
UNSET_TEXT = ""


def _unset_or_positive(value: float) -> float:
    if value != UNSET_NUMBER and value <= 0:
        raise ValueError("must be -1 or above 0")
    return value


def _unset_or_not_negative(value: float) -> float:
    if value != UNSET_NUMBER and value < 0:
        raise ValueError("must be -1, 0 or above")
    return value


UNSET_OR_POSITIVE = AfterValidator(_unset_or_positive)
UNSET_OR_NOT_NEGATIVE = AfterValidator(_unset_or_not_negative)

Recipe = Annotated[
    Literal["default", "paper", "released"],
    Field(
        description="Which hyper-parameters and wordings: as printed in the paper, as run by the authors' released code, "
        "or this project's default where the two disagree."
    ),
]
Switch = Literal["", "on", "off"]
DeepSpeedStage = Annotated[
    Literal["off", "zero1", "zero2", "zero3"],
    Field(description="DeepSpeed: off, or the ZeRO stage that shards optimizer (1), gradients (2), weights (3)."),
]
Precision = Annotated[
    Literal["auto", "bf16", "fp32"],
    Field(description="Arithmetic; auto = bf16 where the processor or GPU computes it natively, else fp32."),
]
Processes = Annotated[
    int, Field(ge=0, le=64, description="Training processes in this pod; 0 = one per visible GPU, at least one.")
]
Epochs = Annotated[
    float, Field(ge=-1, description="Passes over the training pairs; -1 = the recipe's."), UNSET_OR_POSITIVE
]
MaxSteps = Annotated[
    int,
    Field(
        ge=-1,
        description="Stop after this many updates; -1 = the recipe's, or as many as the epochs need that are given.",
    ),
    UNSET_OR_POSITIVE,
]
LearningRate = Annotated[float, Field(ge=-1, description="Peak learning rate; -1 = the recipe's."), UNSET_OR_POSITIVE]
BatchSize = Annotated[
    int,
    Field(ge=-1, description="Queries per update, over all processes and accumulation; -1 = the recipe's."),
    UNSET_OR_POSITIVE,
]
MicroBatchSize = Annotated[
    int, Field(ge=-1, description="Queries that one process holds at once; -1 = the recipe's."), UNSET_OR_POSITIVE
]
QueryLength = Annotated[
    int, Field(ge=-1, description="Tokens of a query, prompt included; -1 = the recipe's."), UNSET_OR_POSITIVE
]
PassageLength = Annotated[
    int, Field(ge=-1, description="Tokens of a passage, prompt included; -1 = the recipe's."), UNSET_OR_POSITIVE
]
Embedding = Annotated[
    Literal["", "eos", "eos4", "new4"],
    Field(
        description="Embedding tokens instead of the method's: one end-of-sequence token, four of them, or four new tokens "
        "that stage one adds; both stages must agree. Empty = the method's."
    ),
]
LoraRank = Annotated[int, Field(ge=-1, description="Rank of the LoRA adapter; -1 = the recipe's."), UNSET_OR_POSITIVE]
LoraAlpha = Annotated[int, Field(ge=-1, description="Scale of the LoRA adapter; -1 = the recipe's."), UNSET_OR_POSITIVE]
LoraDropout = Annotated[
    float,
    Field(ge=-1, lt=1, description="Dropout before the LoRA adapter; slow on a CPU; -1 = the recipe's."),
    UNSET_OR_NOT_NEGATIVE,
]
GradientCheckpointing = Annotated[
    Switch, Field(description="Recompute activations to save memory: on, off, empty = the recipe's.")
]
Seed = Annotated[int, Field(ge=0, description="Seed of every random draw of this step.")]
CheckpointUri = Annotated[
    str,
    Field(
        description="Directory or s3:// prefix for checkpoints; a step that was killed resumes from there. "
        "Empty = beside the output, which does not outlive a pod."
    ),
]
CheckpointMinutes = Annotated[float, Field(gt=0, description="Minutes between checkpoints.")]


SourceFingerprint = Annotated[
    str,
    Field(
        description="What fingerprint_sources saw at the source; it has no effect but that a changed source is not taken "
        "from Kubeflow's cache."
    ),
]
