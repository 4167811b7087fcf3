"""Which arithmetic a model runs in: one decision for training and encoding."""

from __future__ import annotations

from typing import Literal

import torch

Arithmetic = Literal["bf16", "fp32"]


def resolve_precision(precision: str) -> Arithmetic:
    """Decides `auto`: bf16 where the GPU or the processor computes it natively, else fp32.

    Emulated bf16 is slower than fp32, so it is never chosen by itself; asked for by name it is obeyed.
    """
    if precision == "auto":
        return "bf16" if has_native_bf16() else "fp32"
    if precision not in ("bf16", "fp32"):
        raise ValueError(f"unknown precision {precision!r}")
    return "bf16" if precision == "bf16" else "fp32"


def has_native_bf16() -> bool:
    """Whether the first GPU, or without one the processor (AMX or AVX512-BF16), multiplies bf16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature, False) for feature in ("amx_bf16", "avx512_bf16"))


def dtype_of(precision: str) -> torch.dtype:
    """The torch dtype of a resolved or still open precision."""
    return torch.bfloat16 if resolve_precision(precision) == "bf16" else torch.float32
