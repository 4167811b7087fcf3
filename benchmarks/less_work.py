"""Ways to compute less, each against the plain way: tuning and encoding.

    python benchmarks/less_work.py BACKBONE COLLECTION TRAINING_SET [--queries 32] [--rounds 5]

BACKBONE is the output of fetch_backbone, COLLECTION of prepare_corpus, TRAINING_SET of mine_negatives. Each round takes every
way once, on the same batch: forward, backward and AdamW of one update of contrastive tuning (LLM-QL, LoRA without dropout on
all projections), and the encoding of the batch's passages. Processor time is what counts on a machine with other work;
wall-clock time stands beside it. Medians, and in brackets the least and the most. Losses must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import AutoTokenizer

from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import Lora, Method, method
from llm_retriever.models import last_layer, shared_prefix
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.precision import dtype_of, resolve_precision
from llm_retriever.training.train import TrainingRun
from llm_retriever.training.weights import attach_lora, load_backbone

WAYS = {
    "plain": "",
    "prefix": "prefix",
    "last layer": "last",
    "products": "products",
    "no casts": "casts",
    "all": "prefix last products casts",
}
"""What is on in each way: shared prefixes; a last layer that computes what is read; attention as products; adapters that take
bf16 as it comes."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("backbone", "collection", "training_set"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--passages-per-query", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    given = parser.parse_args()
    given.precision = resolve_precision(given.precision)
    row = dataclasses.replace(method("llm-ql"), query_length=64, passage_length=112)
    batches = made_batches(given, row)
    tokens = sum(int(batches[0][f"{side}_mask"].sum()) for side in ("query", "passage"))
    print(f"{given.precision}, {torch.get_num_threads()} threads, {tokens:,} tokens an update", flush=True)
    compete("update", *tuning(given, row), batches)
    compete("encoding", *encoding(given, row), batches)


def made_batches(given: argparse.Namespace, row: Method) -> list[dict[str, torch.Tensor]]:
    """A batch for each round, and one to warm up."""
    tokenizer = AutoTokenizer.from_pretrained(given.backbone)
    collate = GroupCollator(row, tokenizer, Collection.open(given.collection).lookup())
    dataset = ContrastiveDataset(given.training_set, given.passages_per_query, 17)
    starts = range(0, (given.rounds + 1) * given.queries, given.queries)
    return [collate([dataset[i % len(dataset)] for i in range(s, s + given.queries)]) for s in starts]


@contextlib.contextmanager
def way(model: Any, used: str) -> Iterator[None]:
    """Runs a model in a way, by what is on."""
    before, devices = dict(shared_prefix.OVERHEAD), set(last_layer.DEVICES)
    if "prefix" not in used:
        shared_prefix.OVERHEAD.clear()
    if "last" not in used:
        last_layer.DEVICES.clear()
    model.set_attn_implementation("products" if "products" in used else "sdpa")
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.cast_input_dtype_enabled = "casts" not in used
    yield
    shared_prefix.OVERHEAD.update(before)
    last_layer.DEVICES.update(devices)


def tuning(given: argparse.Namespace, row: Method) -> tuple[Any, Callable[[dict[str, torch.Tensor]], float]]:
    """One update; gives the loss."""
    model = load_backbone(given.backbone, TrainingRun("", given.precision), tune="lora", head=False)
    model = attach_lora(model, Lora(rank=32, alpha=64, dropout=0.0), seed=17).train()
    loss = ContrastiveLoss(row)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def update(batch: dict[str, torch.Tensor]) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.precision == "bf16"):
            value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return model.get_base_model(), update


def encoding(given: argparse.Namespace, row: Method) -> tuple[Any, Callable[[dict[str, torch.Tensor]], float]]:
    """The passages of a batch; gives the sum of all numbers."""
    card = RetrieverCard.of(row, Lineage(str(given.backbone)))
    retriever = Retriever.on_backbone(given.backbone, card, precision=given.precision)
    assert retriever.model.dtype == dtype_of(given.precision)

    def encode(batch: dict[str, torch.Tensor]) -> float:
        pairs = zip(batch["passage_ids"], batch["passage_mask"], strict=True)
        rows = [ids[real.bool()].tolist() for ids, real in pairs]
        return float(retriever.encode_rows("passage", rows, 16_384).sum())

    return retriever.model, encode


def compete(title: str, model: Any, run: Callable[[Any], float], batches: list[Any]) -> None:
    """Lets the ways take turns, and prints their times and ratios."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    values: dict[str, float] = {}
    for batch in batches:
        for name, used in WAYS.items():
            with way(model, used):
                wall, processor = time.perf_counter(), time.process_time()
                values[name] = run(batch)
                spent[name].append((time.process_time() - processor, time.perf_counter() - wall))
    reference = next(iter(WAYS))
    for name, times in spent.items():
        pairs = list(zip(times[1:], spent[reference][1:], strict=True))
        ratio = spread([mine[0] / other[0] for mine, other in pairs])
        seconds = [spread([pair[kind] for pair in times[1:]]) for kind in (0, 1)]
        print(
            f"{title:>9} {name:>14} {seconds[0]} s processor, {seconds[1]} s wall, ratio {ratio}, {values[name]:.4f}",
            flush=True,
        )


def spread(values: list[float]) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


if __name__ == "__main__":
    main()
