"""Shapes of models and GPUs that decide the cost of a run: dimensions, rates, memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.models.gguf_files import SUFFIX, configuration


@dataclass(frozen=True)
class Gpu:
    """The GPU of the model steps: its dense bf16 matrix rate in FLOP/s, and its memory in bytes."""

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
    """Dimensions of a causal LM with gated feed-forward layers.

    Attributes:
        layers, hidden, inner, vocabulary: As in its configuration.
        query_width: Heads times their width.
        key_width: The same of keys and of values.
        tied: Whether the head is the embedding table.
        stored: Bytes of a parameter in its files.
    """

    layers: int
    hidden: int
    inner: int
    vocabulary: int
    query_width: int
    key_width: int
    tied: bool = False
    stored: int = 2

    @property
    def layer(self) -> float:
        """Parameters of a layer's matrices."""
        attention = 2 * self.hidden * (self.query_width + self.key_width)
        return float(attention + 3 * self.hidden * self.inner)

    @property
    def body(self) -> float:
        """Parameters that every token is multiplied with: all layers, without tables."""
        return self.layers * self.layer

    @property
    def table(self) -> float:
        """Parameters of the embedding table, and of the head."""
        return float(self.vocabulary * self.hidden)

    @property
    def parameters(self) -> float:
        """All parameters, without norms."""
        return self.body + self.table * (1 if self.tied else 2)

    def adapter(self, rank: int, targets: tuple[str, ...]) -> float:
        """Parameters of a LoRA adapter on these projections."""
        sides = {
            "q_proj": self.hidden + self.query_width,
            "k_proj": self.hidden + self.key_width,
            "v_proj": self.hidden + self.key_width,
            "o_proj": self.hidden + self.query_width,
            "gate_proj": self.hidden + self.inner,
            "up_proj": self.hidden + self.inner,
            "down_proj": self.hidden + self.inner,
        }
        return float(self.layers * rank * sum(sides.get(target, 0) for target in targets))


SHAPES = {
    "meta-llama/Llama-2-7b-hf": Shape(32, 4096, 11_008, 32_000, 4096, 4096),
    "mistralai/Mistral-7B-v0.1": Shape(32, 4096, 14_336, 32_000, 4096, 1024),
    "meta-llama/Llama-3.1-8B": Shape(32, 4096, 14_336, 128_256, 4096, 1024),
    "Qwen/Qwen3-0.6B": Shape(28, 1024, 3072, 151_936, 2048, 1024, tied=True),
    "smollm2-135m": Shape(30, 576, 1536, 49_152, 576, 192, tied=True, stored=4),
    "scratch:tiny": Shape(4, 128, 344, 8192, 128, 128, tied=True, stored=4),
    "scratch:small": Shape(6, 256, 688, 8192, 256, 256, tied=True, stored=4),
    "scratch:medium": Shape(8, 512, 1376, 8192, 512, 512, tied=True, stored=4),
}
"""Known backbones, by their configurations; those from scratch as `llm_retriever.adaptation.pretraining` makes them."""


def shape_of(given: Mapping[str, Any]) -> Shape:
    """Shape of the backbone of a run: a known one's, or that of a model directory's `config.json` or a GGUF file.

    Args:
        given: The pipeline's parameters: `backbone`, `backbone_layers`, and for one from scratch
            `backbone_scratch_vocabulary`.

    Raises:
        InputError: It is none of these.
    """
    shape, layers = _whole_shape(given), int(given.get("backbone_layers", 0))
    return replace(shape, layers=min(layers, shape.layers)) if layers else shape


def _whole_shape(given: Mapping[str, Any]) -> Shape:
    backbone = str(given["backbone"])
    if backbone in SHAPES:
        vocabulary = int(given.get("backbone_scratch_vocabulary", 0))
        if backbone.startswith("scratch:") and vocabulary:
            return replace(SHAPES[backbone], vocabulary=-(-vocabulary // 64) * 64)
        return SHAPES[backbone]
    if backbone.endswith(SUFFIX) and Path(backbone).is_file():
        return _of_gguf(Path(backbone))
    config = Path(backbone) / "config.json"
    if not config.is_file():
        raise InputError(
            f"the shape of {backbone!r} is not known",
            field="backbone",
            hint=f"use a directory with config.json, a GGUF file, or one of {', '.join(SHAPES)}",
        )
    return _configured(json.loads(config.read_text(encoding="utf-8")))


def _of_gguf(path: Path) -> Shape:
    return _configured({**configuration(path, str(path)), "dtype": "float32"})


def _configured(config: Mapping[str, Any]) -> Shape:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return Shape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        query_width=heads * width,
        key_width=config.get("num_key_value_heads", heads) * width,
        tied=bool(config.get("tie_word_embeddings")),
        stored=4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2,
    )
