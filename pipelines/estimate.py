"""What a run would take, from the arithmetic of its models: GPU-hours, memory, disk and S3, step by step.

The model, with P parameters, t tokens, utilisation u of the GPU's bf16 matrix rate:

- encoding takes 2·P·t FLOP; training all weights 6·P·t, a LoRA adapter 4·P·t (no gradients of the frozen weights); 2·P·t more
  where activations are recomputed. Texts count at their full lengths, so real corpora take less. Attention's own part, a few
  per cent at these lengths, is left out.
- training all weights keeps 16 bytes a parameter (bf16 weights and gradients, fp32 weights, two Adam states); ZeRO-1 shares
  the last 12 among the GPUs, ZeRO-2 the gradients too, ZeRO-3 all. LoRA keeps 2 bytes a frozen parameter.
  ZeRO-3 gathers two layers at a time.
- recomputed activations keep each layer's input, 2 bytes a number, and one layer's inside, about 17 times as many; logits take
  10 bytes each at the tokens that have a label.
- an index has 4 or 2 bytes a number. S3 objects are sent in parts of 16 MiB, a request each.

`benchmarks/training_shapes.py` measures utilisation on a GPU; 0.4 is what well-kept 7B trainings reach.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.methods import ADAPTATIONS, METHODS, TUNED_FOR, overridden
from llm_retriever.methods.kinds import Method, Schedule
from llm_retriever.settings import AdaptationSettings, TuningSettings, build, parameters
from pipelines.stages import parameter_name

PART = 16 * 2**20
UTILISATION = 0.4
GIB = 2.0**30


@dataclass(frozen=True)
class Gpu:
    """An accelerator: its dense bf16 matrix rate in FLOP/s, and its memory in bytes."""

    rate: float
    memory: float


GPUS = {
    "a100-40": Gpu(312e12, 40e9),
    "a100-80": Gpu(312e12, 80e9),
    "l40s": Gpu(362e12, 48e9),
    "h100": Gpu(989e12, 80e9),
    "h200": Gpu(989e12, 141e9),
}
"""Makers' data sheets, without sparsity."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides its cost."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int


SHAPES = {
    "meta-llama/Llama-2-7b-hf": Shape(6.74e9, 32, 4096, 32_000),
    "mistralai/Mistral-7B-v0.1": Shape(7.24e9, 32, 4096, 32_000),
    "meta-llama/Llama-3.1-8B": Shape(8.03e9, 32, 4096, 128_256),
    "Qwen/Qwen3-0.6B": Shape(0.596e9, 28, 1024, 151_936),
    "scratch:tiny": Shape(2.0e6, 4, 128, 8192),
    "scratch:small": Shape(8.4e6, 6, 256, 8192),
    "scratch:medium": Shape(33e6, 8, 512, 8192),
}


@dataclass(frozen=True)
class Cost:
    """What a step takes; None where the step has no such thing.

    Attributes:
        step: Its name.
        gpu_hours: Of all its GPUs together.
        gpu_bytes: Memory of one GPU at the peak.
        disk_bytes: Inputs and outputs on the node's disk.
        s3_bytes: Sent to S3.
    """

    step: str
    gpu_hours: float | None
    gpu_bytes: float | None
    disk_bytes: float
    s3_bytes: float

    @property
    def requests(self) -> int:
        """Requests that sending takes."""
        return -int(-self.s3_bytes // PART)


def shape_of(backbone: str) -> Shape:
    """Shape of a known backbone, or of a model directory's `config.json`.

    Raises:
        InputError: It is neither.
    """
    if backbone in SHAPES:
        return SHAPES[backbone]
    config = Path(backbone) / "config.json"
    if not config.is_file():
        raise InputError(
            f"the shape of {backbone!r} is not known",
            field="backbone",
            mend=f"use a directory with config.json, or one of {', '.join(SHAPES)}",
        )
    told = json.loads(config.read_text(encoding="utf-8"))
    hidden, layers, vocabulary = told["hidden_size"], told["num_hidden_layers"], told["vocab_size"]
    heads = told.get("num_key_value_heads", told["num_attention_heads"])
    width = told.get("head_dim", hidden // told["num_attention_heads"])
    attention = 2 * hidden * width * (told["num_attention_heads"] + heads)
    block = attention + 3 * hidden * told["intermediate_size"]
    tables = 1 if told.get("tie_word_embeddings") else 2
    return Shape(float(layers * block + tables * vocabulary * hidden), layers, hidden, vocabulary)


def estimate(given: Mapping[str, Any], passages: int, queries: int, gpu: Gpu) -> list[Cost]:
    """Cost of every step of train_retriever.

    Args:
        given: All parameters of the pipeline.
        passages: Of the corpus.
        queries: Training queries.
        gpu: What the model steps run on, at `UTILISATION` of its rate.
    """
    shape, rate = shape_of(given["backbone"]), gpu.rate * UTILISATION * 3600
    model = 2 * shape.parameters
    corpus = passages * 400.0
    index = passages * shape.hidden * (2.0 if given["index_dtype"] == "fp16" else 4.0)
    row = _method(given)
    encoded = passages * row.passage_length
    return [
        Cost("prepare_corpus", None, None, 2 * corpus, corpus),
        Cost("fetch_backbone", None, None, model, model),
        Cost("mine_negatives", None, None, 3 * corpus, queries * 2500.0),
        *_adaptation(given, shape, passages, queries, rate, model),
        _tuning(given, row, shape, queries, rate, model),
        Cost("build_index", 2 * shape.parameters * encoded / rate, model + 2e9, model + corpus + index, index),
        Cost("evaluate", 0.1, model + 2e9, model + corpus + index, 50e6),
    ]


def _settings(given: Mapping[str, Any], prefix: str, settings: type) -> Any:
    return build(
        settings,
        {
            name: given[parameter_name(prefix, name)]
            for name in parameters(settings)
            if parameter_name(prefix, name) in given
        },
    )


def _method(given: Mapping[str, Any]) -> Method:
    return overridden(METHODS[given["tune_method"]][given["tune_recipe"]], _settings(given, "tune", TuningSettings))


def _adaptation(
    given: Mapping[str, Any], shape: Shape, passages: int, queries: int, rate: float, model: float
) -> list[Cost]:
    costs = []
    for name in given["adapt_method"].split("+"):
        if name not in ADAPTATIONS:
            continue
        recipe = overridden(ADAPTATIONS[name][given["adapt_recipe"]], _settings(given, "adapt", AdaptationSettings))
        length = recipe.passage_length + getattr(recipe, "query_length", 0)
        tokens = _examples(recipe.schedule, queries if name == "ql" else passages) * length
        labels = getattr(recipe, "query_length", recipe.passage_length)
        held = recipe.schedule.micro_batch_size
        memory = _memory(
            shape, recipe.tune, given["adapt_deepspeed"], given["adapt_gpus"], held * length, held * labels
        )
        hours = _flop(shape, recipe.tune, recipe.schedule) * tokens / rate
        costs.append(Cost(f"adapt_backbone ({name}, for {TUNED_FOR[name]})", hours, memory, 2 * model, model))
    return costs


def _tuning(given: Mapping[str, Any], row: Method, shape: Shape, queries: int, rate: float, model: float) -> Cost:
    tuning = row.tuning
    per_query = row.query_length + tuning.passages_per_query * row.passage_length
    tokens = _examples(tuning.schedule, queries) * per_query
    once_more = 2 if tuning.gradient_cache else 0
    held = tuning.gradient_cache * row.passage_length or tuning.schedule.micro_batch_size * per_query
    hours = (_flop(shape, tuning.tune, tuning.schedule) + once_more * shape.parameters) * tokens / rate
    memory = _memory(shape, tuning.tune, given["tune_deepspeed"], given["tune_gpus"], held, 0)
    return Cost(f"tune_retriever ({row.name})", hours, memory, 2 * model, model)


def _examples(schedule: Schedule, available: int) -> float:
    wanted = schedule.epochs * available
    return min(wanted, schedule.max_steps * schedule.batch_size) if schedule.max_steps > 0 else wanted


def _flop(shape: Shape, tune: str, schedule: Schedule) -> float:
    """FLOP a token of a training step."""
    passes = (6 if tune == "full" else 4) + (2 if schedule.gradient_checkpointing else 0)
    return passes * shape.parameters


def _memory(shape: Shape, tune: str, deepspeed: str, gpus: int, tokens: float, labels: float) -> float:
    """Bytes of one GPU."""
    shared = {"off": (16, 0), "zero1": (4, 12), "zero2": (2, 14), "zero3": (0, 16)}[deepspeed]
    if tune == "lora":
        shared = (0, 2) if deepspeed == "zero3" else (2, 0)
    weights = shape.parameters * (shared[0] + shared[1] / max(gpus, 1))
    inputs, inside = 2 * tokens * shape.hidden * shape.layers, 34 * tokens * shape.hidden
    gathered = 4 * shape.parameters / shape.layers if deepspeed == "zero3" else 0.0
    return weights + gathered + inputs + inside + 10 * labels * shape.vocabulary


def as_table(costs: list[Cost], gpu: Gpu) -> str:
    """For people; a step that does not fit into the GPU is marked."""
    lines = ["| step | GPU-hours | memory per GPU | disk | to S3 | requests |", "|---|---|---|---|---|---|"]
    for cost in costs:
        hours = "–" if cost.gpu_hours is None else f"{cost.gpu_hours:,.2f}"
        memory = "–" if cost.gpu_bytes is None else f"{cost.gpu_bytes / GIB:,.1f} GiB"
        memory += " **too much**" if (cost.gpu_bytes or 0) > gpu.memory else ""
        sizes = f"{cost.disk_bytes / GIB:,.1f} GiB | {cost.s3_bytes / GIB:,.1f} GiB"
        lines.append(f"| {cost.step} | {hours} | {memory} | {sizes} | {cost.requests:,} |")
    total = sum(cost.gpu_hours or 0 for cost in costs)
    stored = sum(cost.s3_bytes for cost in costs) / GIB
    return "\n".join(
        [*lines, f"| **all** | **{total:,.2f}** | | | **{stored:,.1f} GiB** | {sum(c.requests for c in costs):,} |"]
    )
