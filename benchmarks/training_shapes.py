"""How much of a machine's measured matrix rate training and encoding use, on a model of a published shape, random weights.

    python benchmarks/training_shapes.py [--shape tiny|0.6b|7b] [--queries 16] [--passages-per-query 8] [--steps 3]

Three measurements, each the best of `--steps`: an LLM-QL step (all weights, attention block, loss on the query), a contrastive
step (LoRA on all projections, hard and in-batch negatives), and encoding passages. A training step is forward, backward and
AdamW. Rows are random ids with lengths like those of MS MARCO. The rate to compare with is that of one large matrix product
in the same dtype on the same device.

`roofline.operations` says what is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from roofline import operations
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from llm_retriever.adaptation.query_likelihood import QueryLikelihoodLoss
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import Lora, method
from llm_retriever.models.batches import padded
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.precision import dtype_of, resolve_precision
from llm_retriever.training.chunks import ByLength
from llm_retriever.training.weights import attach_lora

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "vocab_size": 2000,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "0.6b": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
"""Qwen3-0.6B's and Llama-2-7B's sizes; the tiny one tries the script."""
MATRIX = {"cpu": 1024}
MATRIX_ON_GPU = 8192
FIRST = 4
"""The smallest id in a text."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What a measurement computes: tokens, and floating-point operations."""

    tokens: int
    operations: float


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--queries", type=int, default=16, help="Of a training step.")
    parser.add_argument("--passages-per-query", type=int, default=8)
    parser.add_argument("--encoded", type=int, default=0, help="Passages to encode; 0 = as many as a step has.")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto", help="auto = on for 7b.")
    parser.add_argument("--only", choices=("ql", "lora", "encode"), action="append")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype_of(resolve_precision(given.precision))
    peak = matrix_rate(device, dtype)
    print(
        f"{given.shape}, {str(dtype).removeprefix('torch.')} on {device.type}: matrix product {peak / 1e12:.3f} TFLOP/s"
    )
    parts = {"ql": query_likelihood, "lora": contrastive, "encode": encoding}
    for name in given.only or parts:
        model = made_model(given, device, dtype)
        seconds, work = parts[name](model, given, device)
        report(name, seconds, work, peak, device)
        del model
        if device.type == "cuda":
            torch.cuda.empty_cache()


def report(name: str, seconds: float, work: Work, peak: float, device: torch.device) -> None:
    """Prints a line."""
    rate = work.operations / seconds
    line = f"{name:>7} {seconds:8.3f}s {work.tokens / seconds:10,.0f} tokens/s"
    line += f" {rate / 1e12:9.3f} TFLOP/s {rate / peak:5.0%} of the matrix rate"
    if device.type == "cuda":
        line += f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        torch.cuda.reset_peak_memory_stats()
    print(line, flush=True)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of some."""
    size = MATRIX.get(device.type, MATRIX_ON_GPU)
    one, two = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / best_of(10, device, lambda: one @ two)


def best_of(rounds: int, device: torch.device, call: Callable[[], Any]) -> float:
    """Seconds of the fastest call, after one that does not count."""
    found = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def made_model(given: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> LlamaForCausalLM:
    """A Llama of the shape, made where it is used."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[given.shape], max_position_embeddings=4096))
    torch.set_default_dtype(torch.float32)
    if given.checkpointing == "on" or (given.checkpointing == "auto" and given.shape == "7b"):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def texts(number: int, typical: float, most: int, vocabulary: int) -> list[list[int]]:
    """Random ids; lengths are log-normal around a typical one, as those of MS MARCO are."""
    draw = random.Random(number)
    lengths = [min(most, max(4, round(draw.lognormvariate(0, 0.4) * typical))) for _ in range(number)]
    return [[draw.randrange(FIRST, vocabulary) for _ in range(length)] for length in lengths]


def query_likelihood(model: LlamaForCausalLM, given: argparse.Namespace, device: torch.device) -> tuple[float, Work]:
    """A step of LLM-QL's stage one, with every passage of the step."""
    number = given.queries * given.passages_per_query
    documents, queries = (texts(number, *sizes, model.config.vocab_size) for sizes in ((110, 200), (10, 64)))
    rows = [[*document, 2, *query] for document, query in zip(documents, queries, strict=True)]
    batch = padded(rows, 0, "right")
    targets = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    for i, (row, query) in enumerate(zip(rows, queries, strict=True)):
        targets[i, len(row) - len(query) : len(row)] = True
    batch |= {"embedding": torch.tensor([len(document) for document in documents]), "targets": targets}
    work = counted(model, rows, passes=3, head=int(targets.sum()))
    return timed(model, ByLength(QueryLikelihoodLoss(True)), batch, given.steps, device), work


def contrastive(model: LlamaForCausalLM, given: argparse.Namespace, device: torch.device) -> tuple[float, Work]:
    """A step of contrastive tuning with LoRA."""
    number, vocabulary, batch = given.queries * given.passages_per_query, model.config.vocab_size, {}
    sides = {"query": texts(given.queries, 20, 64, vocabulary), "passage": texts(number, 110, 200, vocabulary)}
    for name, rows in sides.items():
        side = padded(rows, 0, "right")
        batch |= {f"{name}_ids": side["input_ids"], f"{name}_mask": side["attention_mask"]}
    tuned = attach_lora(model.model, Lora(dropout=0.0), seed=0)
    adapter = sum(parameter.numel() for parameter in tuned.parameters() if parameter.requires_grad)
    work = counted(model, [row for rows in sides.values() for row in rows], passes=2, adapter=adapter, read=1)
    return timed(tuned, ContrastiveLoss(method("repllama")), batch, given.steps, device), work


def encoding(model: LlamaForCausalLM, given: argparse.Namespace, device: torch.device) -> tuple[float, Work]:
    """Encoding passages, tokenised already."""
    number = given.encoded or given.queries * given.passages_per_query
    rows = texts(number, 110, 200, model.config.vocab_size)
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    retriever = Retriever(model.model, tokenizer, RetrieverCard.of(method("repllama"), Lineage("random")))
    seconds = best_of(given.steps, device, lambda: retriever.encode_rows("passage", rows, 16_384))
    return seconds, counted(model, rows, passes=1, read=1)


def timed(model: Any, loss: Callable[..., Tensor], batch: dict[str, Tensor], steps: int, device: torch.device) -> float:
    """Seconds of a training step."""
    placed = {name: value.to(device) for name, value in batch.items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step() -> None:
        loss(model, placed).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return best_of(steps, device, step)


def counted(model: LlamaForCausalLM, rows: list[list[int]], **what: int) -> Work:
    """Tokens and operations of rows."""
    lengths = [len(row) for row in rows]
    return Work(sum(lengths), operations(model.model, lengths, **what))


if __name__ == "__main__":
    main()
