"""Rates on random weights in the shapes of real models: tokens and operations a second, and the share of the matrix rate.

The matrix rate is measured first, on matrices of the model's own shapes. Figures are medians of `ROUNDS`, after one
round that warms up; ways that are compared take turns.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import roofline
import torch

from benchmarks.gpu import inputs, steps
from benchmarks.gpu.inputs import Shape
from benchmarks.gpu.record import Block
from llm_retriever.exporting.export import export_sentence_transformers
from llm_retriever.models.batches import padded
from llm_retriever.models.shared_prefix import SharedPrefix, common_length

ROUNDS = 3
TOKENS = {"cuda": 16_384, "cpu": roofline.ROWS}
"""Of a product: as many as go through a layer at once."""
BATCHES = (32, 256)
"""Texts of the peer's batches: its default, and what a GPU likes better."""
PEER_SHAPE = "Qwen3-0.6B"
"""The peer reads an export: of the large model it would be 27 GB."""
SDPA = "aten::_scaled_dot_product_"
"""How the operators begin that stand for a kernel of attention."""


def run(block: Block) -> None:
    """Measures every shape; what compares two ways comes behind the plain rates."""
    shapes, found = inputs.shapes(block.given.tiny), dict[str, float]()
    for name, shape in shapes.items():
        block.item(f"{name}: matrices alone", partial(matrix, name, shape, block.device, found))
        for work, build in steps.BUILDERS.items():
            block.item(f"{name}: {work}", partial(rate, build, shape, block.device, name, found))
    for name, shape in reversed(shapes.items()):
        block.item(f"{name}: {steps.PREFIX}, encode", partial(prefix_encoding, shape, block.device))
        for shortcut in (steps.PREFIX, steps.LAST_LAYER):
            block.item(f"{name}: {shortcut}, contrastive LoRA", partial(tuning, shortcut, shape, block.device))
    peer = partial(against_peer, shapes[PEER_SHAPE], block.device, block.scratch / "export")
    block.item(f"{PEER_SHAPE}: encode, against sentence-transformers", peer)


def matrix(name: str, shape: Shape, device: str, found: dict[str, float]) -> dict[str, Any]:
    """The rate at which the device multiplies matrices of a model's shapes; kept for what is measured next."""
    model = inputs.random_model(shape.config, "meta", head=False)
    work = roofline.products(model, torch.bfloat16, times=1, device=device, tokens=TOKENS[device])
    seconds = turns({"products": work}, device)["products"]
    found[name] = work()["operations"] / seconds
    return {"seconds": seconds, "tflops": found[name] / 1e12}


def rate(build: steps.Builder, shape: Shape, device: str, name: str, found: Mapping[str, float]) -> dict[str, Any]:
    """What a piece of work reaches."""
    work = build(shape, device)
    with steps.shortcuts(device, steps.LAST_LAYER):
        kernels = attention_kernels(work.call)
        forget_peak(device)
        seconds = turns({"it": work.call}, device)["it"]
    reached = work.operations / seconds
    figures = {"seconds": seconds, "tokens_per_second": work.tokens / seconds, "tflops": reached / 1e12}
    share = {"share": reached / found[name]} if name in found else {}
    return {**figures, **share, "peak_gib": peak(device), "sdpa": kernels}


def prefix_encoding(shape: Shape, device: str) -> dict[str, Any]:
    """Encoding with shared prefixes and without, and what one more pass costs: `shared_prefix.OVERHEAD` of the device."""
    retriever, texts = steps.retriever_of(shape, device), steps.texts_of(shape)
    rows = retriever.tokenise_passages(texts)
    ids, mask = padded(rows, 0, "right").values()
    head = ids[:1, : common_length(ids, mask.sum(dim=1))].to(device)
    ways = with_and_without(steps.PREFIX, lambda: retriever.encode_passages(texts), device)

    @torch.inference_mode()
    def one_pass() -> None:
        SharedPrefix.of(retriever.model, head)

    seconds = turns({**ways, "pass": one_pass}, device)
    tokens = sum(map(len, rows)) * seconds["pass"] / seconds["off"]
    cosine = float((ways["on"]() * ways["off"]()).sum(axis=1).min())
    return {"ratio": seconds["on"] / seconds["off"], "overhead_tokens": tokens, "least_cosine": cosine}


def tuning(shortcut: str, shape: Shape, device: str) -> dict[str, Any]:
    """A contrastive step that computes less, and one that does not."""
    ways = with_and_without(shortcut, steps.tuning(False, shape, device).call, device)
    seconds = turns(ways, device)
    return {"ratio": seconds["on"] / seconds["off"], "losses_apart": abs(ways["on"]() - ways["off"]())}


def with_and_without(shortcut: str, call: Callable[[], Any], device: str) -> dict[str, Callable[[], Any]]:
    """The same work with a way to compute less and without."""

    def way(*used: str) -> Any:
        with steps.shortcuts(device, *used):
            return call()

    return {"off": way, "on": partial(way, shortcut)}


def against_peer(shape: Shape, device: str, export: Path) -> dict[str, Any]:
    """Encodes the same texts by sentence-transformers, in the batch size that suits it best."""
    from sentence_transformers import SentenceTransformer

    retriever, texts = steps.retriever_of(shape, device, "repllama", torch.float32), steps.texts_of(shape)
    export_sentence_transformers(retriever, export)
    retriever.model.to(torch.bfloat16)
    peer: Any = SentenceTransformer(str(export), device=device, model_kwargs={"dtype": torch.bfloat16})
    ways = {str(n): partial(peer.encode_document, texts, batch_size=n, show_progress_bar=False) for n in BATCHES}
    seconds = turns({"ours": lambda: retriever.encode_passages(texts), **ways}, device)
    best = min(ways, key=lambda name: seconds[name])
    cosine = (retriever.encode_passages(texts) * np.asarray(ways[best]())).sum(axis=1).min()
    times = {
        "seconds": seconds["ours"],
        "peer_seconds": seconds[best],
        "times_as_fast": seconds[best] / seconds["ours"],
    }
    return {**times, "peer_batch": best, "least_cosine": float(cosine)}


def turns(ways: Mapping[str, Callable[[], Any]], device: str) -> dict[str, float]:
    """Median seconds of each way; they take turns."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + ROUNDS):
        for name, call in ways.items():
            wait(device)
            started = time.perf_counter()
            call()
            wait(device)
            spent[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in spent.items()}


def wait(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def forget_peak(device: str) -> None:
    """Begins a new peak of memory."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> float:
    """GiB of the GPU at the peak of this item; on a processor those of the process, since it began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def attention_kernels(call: Callable[[], Any]) -> str:
    """Names of the kernels that scaled dot-product attention chose in the forward pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    names = {event.key for event in profiler.key_averages() if event.key.startswith(SDPA)}
    return " ".join(sorted(name.removeprefix(SDPA) for name in names if "backward" not in name)) or "none"
