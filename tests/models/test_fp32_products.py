"""Linear layers with oneDNN's products: values and gradients are those of torch's own, and only fp32 on processors is theirs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from llm_retriever.methods import Lora
from llm_retriever.models import fp32_products
from llm_retriever.models.fp32_products import FastLinear, is_faster, use_fast_products
from llm_retriever.training.weights import attach_lora
from tests.models.test_shared_prefix import GROUPED, random_model


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor for which oneDNN is chosen."""
    monkeypatch.setattr(fp32_products, "is_faster", lambda: True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 12), (3, 12), (1, 1, 12), (0, 12)])
def test_values_and_gradients_are_those_of_a_linear_layer(faster: None, shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(12, 20, bias=bias)
    fast = use_fast_products(nn.Sequential(copy.deepcopy(plain)))[0]
    assert type(fast) is FastLinear
    ours, theirs = (torch.randn(shape, generator=torch.manual_seed(1)).requires_grad_() for _ in range(2))
    for layer, given in ((fast, ours), (plain, theirs)):
        (layer(given) ** 2).sum().backward()
    torch.testing.assert_close(fast(ours), plain(theirs))
    torch.testing.assert_close(ours.grad, theirs.grad)
    for mine, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_row_alone_is_a_vector(faster: None) -> None:
    layer = use_fast_products(nn.Sequential(nn.Linear(4, 3)))
    assert layer(torch.ones(4)).shape == (3,)


def test_other_arithmetic_is_torchs(faster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr(fp32_products, "_product", refuse)
    layer, given = use_fast_products(nn.Sequential(nn.Linear(4, 3))), torch.ones(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(given).dtype == torch.bfloat16
    assert copy.deepcopy(layer).double()(given.double()).dtype == torch.float64
    with pytest.raises(AssertionError, match="oneDNN"):
        layer(given)


def test_a_model_and_its_adapter_learn_the_same(faster: None) -> None:
    gradients, ids = [], torch.arange(3, 23).view(2, 10)
    for fast in (False, True):
        model = attach_lora(random_model("LlamaConfig", GROUPED), Lora(rank=4, alpha=8, dropout=0.0), seed=0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1, generator=torch.manual_seed(1))
        for module in model.modules():
            if not fast and type(module) is FastLinear:
                module.__class__ = nn.Linear
        assert any(type(module) is FastLinear for module in model.modules()) == fast
        model(input_ids=ids).last_hidden_state.pow(2).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("frozen", "kept"), [(True, ["weight"]), (False, ["rows", "weight"])])
def test_a_frozen_weight_keeps_no_rows(faster: None, frozen: bool, kept: list[str]) -> None:
    layer, given = use_fast_products(nn.Sequential(nn.Linear(4, 3, bias=False)))[0], torch.ones(5, 4).requires_grad_()
    layer.requires_grad_(not frozen)
    shapes: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(tuple(t.shape)) or t, lambda t: t):
        layer(given)
    assert sorted(shapes) == sorted({"rows": (5, 4), "weight": (3, 4)}[name] for name in kept)


def test_what_is_saved_does_not_know(faster: None, tmp_path: Path) -> None:
    model = use_fast_products(random_model("LlamaConfig", GROUPED))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert {type(module) for module in loaded.modules()} & {nn.Linear, FastLinear} == {nn.Linear}
    ids = torch.arange(3, 13)[None]
    torch.testing.assert_close(loaded(ids)[0], model.eval()(ids)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [
        ("vendor_id : AuthenticAMD", "AVX512", True),
        ("vendor_id : AuthenticAMD", "AVX2", False),
        ("vendor_id : GenuineIntel", "AVX512", False),
        (None, "AVX512", False),
    ],
)
def test_the_kind_of_processor_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: str | None, capability: str, expected: bool
) -> None:
    if processor is not None:
        (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(fp32_products, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_faster.__wrapped__() == (expected and torch.backends.mkldnn.is_available())
