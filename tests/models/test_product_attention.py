"""Attention as products, on a processor in bf16: states and gradients are as close to exact ones as the fused kernel's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llm_retriever.models import masks
from llm_retriever.models.product_attention import NAME, product_attention, use_products
from tests.models.test_shared_prefix import SHARING, random_model

ROWS, HEADS, GROUPS, WIDTH, SIZE = 3, 6, 2, 21, 8
REAL = torch.ones(ROWS, WIDTH, dtype=torch.long)
REAL[1, 15:] = 0
BEHIND = torch.ones(WIDTH - 8, WIDTH, dtype=torch.bool).tril(8).expand(ROWS, 1, -1, -1)
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "behind a prefix": BEHIND,
    "float": masks.causal(REAL, torch.bfloat16),
    "for fp32": masks.causal(REAL, torch.float32),
    "boolean": masks.causal(REAL, torch.float32) == 0,
}


def layer(is_causal: bool = True) -> Any:
    return SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=is_causal, training=True)


def attended(attention: Any, module: Any, mask: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of query, key and value, in float64."""
    draw = torch.Generator().manual_seed(1)
    width = WIDTH if mask is None else mask.shape[2]
    shapes = (ROWS, HEADS, width, SIZE), (ROWS, GROUPS, WIDTH, SIZE), (ROWS, GROUPS, WIDTH, SIZE)
    inputs = [torch.randn(s, generator=draw).bfloat16().to(dtype).requires_grad_() for s in shapes]
    if mask is not None and mask.is_floating_point() and dtype == torch.float64:
        mask = mask.double()
    found, _ = attention(module, *inputs, mask, scaling=0.4)
    found.backward(torch.randn(found.shape, generator=draw).bfloat16().to(dtype))
    return [found.detach().double(), *(tensor.grad.double() for tensor in inputs)]


def apart(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("is_causal", [True, False])
def test_outputs_and_gradients_are_exact_to_bf16(mask: str, is_causal: bool) -> None:
    module, given = layer(is_causal), MASKS[mask]
    exact = attended(sdpa_attention_forward, module, given, torch.float64)
    assert max(apart(attended(product_attention, module, given, torch.bfloat16), exact)) < 0.008
    other = attended(sdpa_attention_forward, layer(not is_causal), given, torch.float64)
    assert (given is None) == (max(apart(other, exact)) > 0.1)


@pytest.mark.parametrize("changes", [{"dropout": 0.5}, {"position_bias": torch.ones(1, 1, WIDTH, WIDTH)}, {}])
def test_everything_else_goes_to_the_fused_kernel(changes: dict[str, Any]) -> None:
    draw, dtype = torch.Generator().manual_seed(1), torch.bfloat16 if changes else torch.float32
    inputs = [torch.randn(ROWS, heads, WIDTH, SIZE, generator=draw).to(dtype) for heads in (HEADS, GROUPS, GROUPS)]
    changes = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in changes.items()}
    found = []
    for attention in (product_attention, sdpa_attention_forward):
        torch.manual_seed(2)
        found.append(attention(layer(), *inputs, None, **changes)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("name", sorted(SHARING))
def test_models_compute_the_same_states_to_bf16(name: str) -> None:
    model, ids = random_model(name, SHARING[name]).bfloat16().eval(), torch.arange(40).repeat(2, 1)
    with torch.no_grad():
        fused = model(input_ids=ids)[0].float()
        exact = model.float()(input_ids=ids)[0]
        use_products(model.bfloat16())
        found = model(input_ids=ids)[0].float()
    assert model.config._attn_implementation == NAME
    assert (found - exact).norm() < 2 * (fused - exact).norm() < 0.2 * exact.norm()
