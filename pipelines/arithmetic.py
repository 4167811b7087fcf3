"""Arithmetic and memory of passes through a model; `docs/estimate.md` derives the formulas."""

from __future__ import annotations

from dataclasses import dataclass

from llm_retriever.methods.types import Lora, Schedule
from pipelines.model_shapes import Shape

SHARES = {"off": (16, 0), "zero1": (4, 12), "zero2": (2, 14), "zero3": (0, 16)}
"""Bytes of a trained parameter that every GPU has, and that all GPUs share: weights, gradients, fp32 weights, Adam."""
CHECKPOINT = {"off": 12, "zero1": 14, "zero2": 14, "zero3": 14}
"""Bytes of a trained parameter in a checkpoint: weights and Adam's states, under DeepSpeed fp32 weights too."""
LOGIT = 10
"""Bytes of a logit in training: itself in bf16, in fp32, and its gradient."""


@dataclass(frozen=True)
class Training:
    """The training of a model.

    Attributes:
        tune: `full` or `lora`.
        lora: The adapter.
        schedule: Batches, and whether activations are recomputed.
        deepspeed: `off`, `zero1`, `zero2` or `zero3`.
        gpus: GPUs of all nodes.
        number: Bytes of an activation: 2 in bf16, 4 in fp32.
    """

    tune: str
    lora: Lora
    schedule: Schedule
    deepspeed: str
    gpus: int
    number: int

    @property
    def micro_batch(self) -> int:
        """Examples that a GPU holds at once."""
        return max(1, min(self.schedule.micro_batch_size, self.schedule.batch_size // self.gpus))

    def trained(self, shape: Shape) -> float:
        """Number of trained parameters."""
        return shape.parameters if self.tune == "full" else shape.adapter(self.lora.rank, self.lora.targets)

    def examples(self, available: float) -> float:
        """Number of training examples, of `available` ones."""
        wanted = self.schedule.epochs * available
        return (
            min(wanted, self.schedule.max_steps * self.schedule.batch_size) if self.schedule.max_steps > 0 else wanted
        )


def forward(shape: Shape, length: float, adapter: float = 0.0) -> float:
    """FLOP a token of a forward pass through the layers, in rows of `length` tokens; attention counts as a full square."""
    return 2 * (shape.body + adapter) + 4 * shape.layers * length * shape.query_width


def training_flop(shape: Shape, training: Training, length: float, *, passes: int = 0) -> float:
    """FLOP a token of a training step.

    Args:
        shape: Of the model.
        training: How it is trained: all weights take three forward passes' worth, an adapter two (frozen weights have
            no gradients) and three for itself; recomputed activations one more.
        length: Tokens of a row.
        passes: Further forward passes, as GradCache takes.
    """
    again = passes + int(training.schedule.gradient_checkpointing)
    if training.tune == "full":
        return (3 + again) * forward(shape, length)
    adapter = training.trained(shape)
    return (2 + again) * forward(shape, length, adapter) + 2 * adapter


def head_flop(shape: Shape, training: Training | None = None) -> float:
    """FLOP of a logit row: of a forward pass, or of a training step."""
    passes = 1 if training is None else 3 if training.tune == "full" else 2
    return 2 * passes * shape.table


def training_memory(shape: Shape, training: Training, tokens: float, labels: float) -> float:
    """Bytes of one GPU in training.

    Args:
        shape: Of the model.
        training: How it is trained.
        tokens: That the GPU holds at once, with gradients.
        labels: Tokens among them whose logits are computed.
    """
    own, shared = SHARES[training.deepspeed]
    weights = training.trained(shape) * (own + shared / training.gpus)
    if training.tune == "lora":
        frozen = shape.parameters * training.number
        weights += frozen / training.gpus if training.deepspeed == "zero3" else frozen
    gathered = 2 * training.number * shape.layer if training.deepspeed == "zero3" else 0.0
    return (
        weights
        + gathered
        + _activations(shape, training, tokens)
        + labels * shape.vocabulary * LOGIT * training.number / 2
    )


def _activations(shape: Shape, training: Training, tokens: float) -> float:
    """Recomputed: every layer's input, and the inside of one; else every layer's inside."""
    inside = 4 * shape.hidden + 2 * (shape.query_width + shape.key_width) + 4 * shape.inner
    if training.tune == "lora":
        # Each projection keeps its adapter's input after dropout; those of q, k, v and of gate, up read the same.
        inside += 2 * 5 * shape.hidden + shape.query_width + shape.inner
    if training.schedule.gradient_checkpointing:
        return training.number * tokens * (shape.layers * shape.hidden + inside)
    return training.number * tokens * shape.layers * inside


def encoding_memory(shape: Shape, tokens: float, number: int) -> float:
    """Bytes of one GPU that encodes `tokens` at once: the weights, and the widest moment of a layer."""
    return number * (shape.parameters + tokens * (4 * shape.hidden + 3 * shape.inner))
