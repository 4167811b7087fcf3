"""The demo: which preset a run on this machine has where none is named, and how long it will take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

PRESET, COMPARED = "demo-cpu", "demo-compare"
VARIANTS = "demo-methods"
"""What a comparison with the demo's preset compares."""
_NATIVE = re.compile(r"\b(avx512_bf16|amx_bf16)\b")


def preset(processor: Path = Path("/proc/cpuinfo"), *, compared: bool = False) -> tuple[str, str]:
    """Returns the demo's preset, or that of a comparison of methods, and a sentence that says what to expect here.

    The flags of the processor are those that `llm_retriever.precision` goes by, without the seconds that torch takes to
    import.
    """
    cpuinfo = processor.read_text(encoding="utf-8") if processor.is_file() else ""
    native = _NATIVE.search(cpuinfo)
    name = COMPARED if compared else PRESET
    minutes = ("40 to 75" if native else "60 to 150") if compared else ("7 to 14" if native else "10 to 25")
    arithmetic = "multiplies bf16 in hardware" if native else "has no bf16 in hardware and computes in fp32"
    return name, f"Preset {name}: this processor {arithmetic}, on two cores some {minutes} minutes."


def variants(parameters: Iterable[str]) -> str | None:
    """Returns what a comparison at the demo's size compares: LLM2Vec has half of its rate, unless parameters name another."""
    own_rate = any(word.startswith("tune_learning_rate=") for word in parameters)
    return None if own_rate else VARIANTS
