"""Chooses the demo for the processor of this machine."""

from __future__ import annotations

import re
from pathlib import Path

BF16, FP32, COMPARED = "demo-cpu", "demo-cpu-fp32", "demo-compare"
VARIANTS = "demo-methods"
"""What a comparison with the demo's preset compares."""
_NATIVE = re.compile(r"\b(avx512_bf16|amx_bf16)\b")


def preset(processor: Path = Path("/proc/cpuinfo"), *, compared: bool = False) -> tuple[str, str]:
    """Returns the demo's preset for this processor, or for a comparison of methods on it, and a sentence that says why.

    The flags are those that `llm_retriever.precision` goes by, without the seconds that torch takes to import.
    """
    cpuinfo = processor.read_text(encoding="utf-8") if processor.is_file() else ""
    if _NATIVE.search(cpuinfo):
        chosen = COMPARED if compared else BF16
        return chosen, f"This processor multiplies bf16 in hardware: preset {chosen}."
    return FP32, f"This processor does not multiply bf16 in hardware: preset {FP32}, with fewer layers and updates."
