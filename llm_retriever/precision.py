"""Chooses the arithmetic of a model, alike for training and encoding."""

from __future__ import annotations

from typing import Literal

import torch

Arithmetic = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Arithmetic, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_precision(precision: str) -> Arithmetic:
    """Resolves `auto`: bf16 where the GPU or the processor computes it natively, else fp32.

    Emulated bf16 is slower than fp32, so it is never chosen by itself; asked for by name it is obeyed. fp16 overflows
    where bf16 does not: it is for encoding with models that were trained in it.
    """
    if precision == "auto":
        return "bf16" if has_native_bf16() else "fp32"
    if precision not in DTYPES:
        raise ValueError(f"unknown precision {precision!r}")
    return precision


def has_native_bf16() -> bool:
    """Whether the first GPU, or without one the processor (AMX or AVX512-BF16), multiplies bf16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(feature, False) for feature in ("amx_bf16", "avx512_bf16"))


def dtype_of(precision: str) -> torch.dtype:
    """Returns the torch dtype of a resolved or still open precision."""
    return DTYPES[resolve_precision(precision)]
