"""Products of linear layers in fp32 by oneDNN, on processors for which the library that torch takes is slow.

torch multiplies fp32 matrices by MKL, which leaves AVX-512 unused on processors that are not Intel's: 105 to 116 GFLOP/s of a
core of an AMD EPYC where oneDNN, which torch brings as well, reaches 230 to 260. Sums are rounded in another order.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def is_faster() -> bool:
    """Whether oneDNN multiplies faster than MKL here: by the kind of processor, so that results do not hang on a clock."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return _CPU_INFO.is_file() and "AuthenticAMD" in _CPU_INFO.read_text(encoding="utf-8", errors="replace")


def use_fast_products(model: Any) -> Any:
    """Makes a model's linear layers multiply fp32 by oneDNN where that is faster; returns the model."""
    if is_faster():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear
    return model


class FastLinear(nn.Linear):
    """A linear layer whose products in fp32 on a processor are oneDNN's; all others are torch's."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns `input` Wᵀ + b, float [..., out]."""
        plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
        # ZeRO-3 has a product of its own, which gathers the weight.
        if not plain or torch.is_autocast_enabled("cpu") or hasattr(self.weight, "ds_id") or not input.numel():
            return super().forward(input)
        rows: Tensor = _Product.apply(input.reshape(-1, self.in_features), self.weight)
        rows = rows if self.bias is None else rows + self.bias
        return rows.view(*input.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """x Wᵀ, and its gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        of_rows, of_weight = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return _product(rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight = ctx.needs_input_grad
        return (
            _product(gradient, weight.t()) if of_rows else None,
            _product(gradient.t(), rows.t()) if of_weight else None,
        )


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left` rightᵀ, of matrices."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product
