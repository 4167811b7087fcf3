"""What adaptation and contrastive tuning share: the Hugging Face Trainer with our loss, schedule, progress and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.methods import Schedule

LossFunction = Callable[[Any, dict[str, Tensor]], Tensor]
"""`loss(model, batch)`: the mean loss over this process's batch, a scalar; it gathers from other processes by itself."""


class TrainingDataset(Protocol):
    """A map-style dataset. Where it has `set_epoch(epoch)`, that is called at the start of each epoch, from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Any: ...


@dataclass(frozen=True)
class TrainingRun:
    """How a training is run, everything resolved: no `auto`, no unset value.

    Attributes:
        title: What progress shows, as in `"tune llm-ql"`.
        precision: `bf16` or `fp32`.
        deepspeed: `off`, `zero1`, `zero2` or `zero3`.
        seed: Seed of the data order and of dropout.
        checkpoints: Directory of this training's checkpoints, derived from the step's inputs; None = no checkpoints.
        checkpoint_minutes: Time between checkpoints.
        mirror: s3:// prefix that the checkpoints are copied to and resumed from; "" = the directory is enough.
    """

    title: str
    precision: str = "fp32"
    deepspeed: str = "off"
    seed: int = 17
    checkpoints: Path | None = None
    checkpoint_minutes: float = 10.0
    mirror: str = ""


@dataclass
class TrainingLog:
    """What happened in a training, over all its interruptions.

    Attributes:
        steps: One entry an update: `step`, `loss`, `learning_rate`, `grad_norm`, `epoch`, `seconds` (since the start).
        seconds: Wall-clock time of the training itself.
        examples: Training examples seen.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    examples: int = 0

    def save(self, path: str | Path) -> None:
        """Writes the log as JSON."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> TrainingLog:
        """Reads a log that `save` wrote."""
        return cls(**files.read_json(path))


def resolve_precision(wanted: str) -> str:
    """`bf16` or `fp32`: `auto` takes bf16 where the GPU or processor computes it natively."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def train(
    model: nn.Module,
    dataset: TrainingDataset,
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    loss: LossFunction,
    schedule: Schedule,
    run: TrainingRun,
) -> TrainingLog:
    """Trains `model` in place, from the last complete checkpoint where there is one.

    Runs in one process, or in each process that `launching.launch` started. AdamW, linear schedule with warm-up,
    gradient norm clipped at 1. The model's parameters with `requires_grad` are trained; weights are best loaded with
    `weights.load_backbone`, which knows what ZeRO-3 and bf16 need.

    Args:
        model: A `PreTrainedModel` or `PeftModel`.
        dataset: The examples.
        collate: Makes one batch of tensors of a list of examples; its keys are the loss's business.
        loss: The loss of one micro-batch.
        schedule: `batch_size` is global: accumulation = batch_size / (micro_batch_size · processes).
        run: Precision, DeepSpeed, seed and checkpoints.

    Returns:
        The log; the same in every process.

    Raises:
        InputError: The dataset is too small for the processes, the batch cannot be divided, or the loss left the numbers.
        SystemExit: 143, after SIGTERM, with a checkpoint saved.
    """
    raise NotImplementedError
