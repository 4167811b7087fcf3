"""Settings that several steps share, and the values that leave the decision to the recipe."""

from __future__ import annotations

import enum
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import CoreSchema, core_schema

from llm_retriever.methods.overrides import UNSET_NUMBER
from llm_retriever.methods.retrieval import EmbeddingVariant


class Place(enum.Enum):
    """How a setting reaches its step on a cluster; a field of a settings class is marked with one of these.

    Kubeflow keeps every parameter of a task several times in one object of at most 1 MiB, and puts all of them into the key
    of its cache. So a form has only what people really set, and what does not change a result stays out of it.
    """

    OPTIONS = "options"
    """A key of the stage's JSON object; what has no mark."""
    FORM = "form"
    """A parameter of the pipeline, with the stage's prefix."""
    RUN = "run"
    """A parameter of the pipeline that several steps share, with the prefix `run_`."""
    POD = "pod"
    """Written into the pod when a pipeline is compiled: decides what a run costs, never what it makes."""
    STEP = "step"
    """Answered by an earlier step, or by how the pipeline is laid out."""


@dataclass(frozen=True)
class OneOf:
    """Marks a text that is one of the names of a table, as a `Literal` would if the names were not the table's."""

    names: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """What pydantic makes of a `Literal`."""
        return core_schema.literal_schema(list(self.names))


IN_FORM, OF_RUN, OF_POD, OF_STEP = Place.FORM, Place.RUN, Place.POD, Place.STEP


def _unset_or_positive(value: float) -> float:
    if value != UNSET_NUMBER and value <= 0:
        raise ValueError("must be -1 or above 0")
    return value


def _unset_or_not_negative(value: float) -> float:
    if value != UNSET_NUMBER and value < 0:
        raise ValueError("must be -1, 0 or above")
    return value


def _count_as_text(value: object) -> object:
    """Kubernetes' quantities are texts, Kubeflow's message holds numbers as floats: 8, 8.0 and "8" are the same."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    whole = number and value == int(value)  # type: ignore[call-overload]
    return str(int(value)) if whole else value  # type: ignore[call-overload]


def _dimensions(value: str) -> str:
    if not re.fullmatch(r"(0*[1-9]\d*(,0*[1-9]\d*)*)?", value.replace(" ", "")):
        raise ValueError("must be whole numbers above 0, separated by commas")
    return value


UNSET_OR_POSITIVE = AfterValidator(_unset_or_positive)
UNSET_OR_NOT_NEGATIVE = AfterValidator(_unset_or_not_negative)
DIMENSIONS = AfterValidator(_dimensions)

Recipe = Annotated[
    Literal["default", "paper", "released"],
    Field(
        description="Which hyper-parameters and wordings: as printed in the paper, as run by the authors' released code, "
        "or this project's default where the two disagree."
    ),
    IN_FORM,
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
Gpus = Annotated[
    str,
    BeforeValidator(_count_as_text),
    Field(
        pattern=r"^(|0|1|2|4|8|16)$",
        description="GPUs that the step asks for: 1, 2, 4, 8 or 16; with fewer it ends at once. 0 = the processor; empty = "
        "those that are there.",
    ),
    IN_FORM,
]
Processes = Annotated[
    int, Field(ge=0, le=64, description="Training processes in this pod; 0 = one per GPU, at least one.")
]
Epochs = Annotated[
    float,
    Field(ge=-1, description="Passes over the training pairs; -1 = the recipe's."),
    UNSET_OR_POSITIVE,
    IN_FORM,
]
MaxSteps = Annotated[
    int,
    Field(
        ge=-1,
        description="Stop after this many updates; -1 = the recipe's, or as many as the epochs need that are given.",
    ),
    UNSET_OR_POSITIVE,
]
LearningRate = Annotated[
    float, Field(ge=-1, description="Peak learning rate; -1 = the recipe's."), UNSET_OR_POSITIVE, IN_FORM
]
BatchSize = Annotated[
    int,
    Field(ge=-1, description="Queries per update, over all processes and accumulation; -1 = the recipe's."),
    UNSET_OR_POSITIVE,
    IN_FORM,
]
MicroBatchSize = Annotated[
    int,
    Field(ge=-1, description="Queries that one process holds at once; -1 = the recipe's."),
    UNSET_OR_POSITIVE,
    IN_FORM,
]
QueryLength = Annotated[
    int, Field(ge=-1, description="Tokens of a query, prompt included; -1 = the recipe's."), UNSET_OR_POSITIVE
]
PassageLength = Annotated[
    int, Field(ge=-1, description="Tokens of a passage, prompt included; -1 = the recipe's."), UNSET_OR_POSITIVE
]
Embedding = Annotated[
    EmbeddingVariant,
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
    OF_RUN,
]
CheckpointMinutes = Annotated[float, Field(gt=0, description="Minutes between checkpoints."), OF_POD]


SourceFingerprint = Annotated[
    str,
    Field(
        description="What fingerprint_sources saw at the source; it has no effect but that a changed source is not taken "
        "from Kubeflow's cache."
    ),
    OF_STEP,
]
