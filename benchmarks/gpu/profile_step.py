"""A profile of the training step that is farthest from the matrix rate: its trace, and what takes longest in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu import inputs, steps
from benchmarks.gpu.record import Block

TRACE = "trace.json.gz"
"""For chrome://tracing or Perfetto."""
SHOWN = 12


def run(block: Block) -> None:
    """Profiles one step."""
    name = slowest(block.given.out / "rates.json")
    block.item(name, partial(profiled, name, block))


def slowest(rates: Path) -> str:
    """The item of ours with the least share of the matrix rate; where rates were not measured, a contrastive step."""
    found: Mapping[str, Any] = json.loads(rates.read_text(encoding="utf-8")) if rates.exists() else {}
    shares = {
        item: figures["share"] for item, figures in found.items() if "share" in figures and "two passes" not in item
    }
    return (
        min(shares, key=lambda item: shares[item]) if shares else f"{next(iter(inputs.shapes(True)))}: contrastive LoRA"
    )


def profiled(name: str, block: Block) -> dict[str, Any]:
    """Profiles a step when it is warm; the trace is written beside the figures."""
    shape, _, work = name.partition(": ")
    call = steps.BUILDERS[work](inputs.shapes(block.given.tiny)[shape], block.device).call
    call()
    gpu = [ProfilerActivity.CUDA] if block.device == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *gpu]) as profiler:
        call()
        if gpu:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(block.given.out / TRACE))
    spent = {
        event.key: (event.self_device_time_total if gpu else event.self_cpu_time_total)
        for event in profiler.key_averages()
    }
    first = sorted(spent, key=lambda key: -spent[key])[:SHOWN]
    return {"trace": TRACE, "milliseconds": {key[:80]: round(spent[key] / 1000, 2) for key in first}}
