"""Attention masks: who sees whom, in every implementation of attention, wherever the padding is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llm_retriever.models import masks
from llm_retriever.models.batches import padded

ROWS = [[5, 6, 7, 2, 8, 9, 2], [5, 6, 2, 8, 2], [5, 6, 7, 8, 9, 10, 11, 2, 12]]
EMBEDDING = [3, 2, 7]
SELF_START, NEXT_START = [2, 1, 4], [4, 3, 7]


def batch(side: str = "left", rows: list[list[int]] = ROWS, places: list[int] = EMBEDDING) -> tuple[Tensor, ...]:
    made = padded(rows, pad=3, side=side)
    pads = made["attention_mask"].shape[1] - made["attention_mask"].sum(1)
    e = torch.tensor(places) + (pads if side == "left" else 0)
    return made["input_ids"], made["attention_mask"], e


def seen(mask: Tensor) -> list[str]:
    return ["".join("x" if entry == 0 else "." for entry in row) for row in mask.tolist()]


def model(directory: Path, attention: str = "sdpa", dtype: torch.dtype = torch.float32):
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention, dtype=dtype).eval()


def real_logits(llm, ids: Tensor, mask: Tensor, real: Tensor) -> list[Tensor]:
    with torch.no_grad():
        logits = llm(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [row[keep.bool()] for row, keep in zip(logits, real, strict=True)]


def test_attention_block_is_the_picture_of_the_paper():
    _, real, e = batch("left", [[5, 6, 7, 2, 8, 9]], [3])
    mask = masks.attention_block(real, e, torch.float32)
    assert seen(mask[0, 0]) == ["x.....", "xx....", "xxx...", "xxxx..", "...xx.", "...xxx"]


def test_each_row_is_blocked_at_its_own_embedding_token():
    _, real, e = batch("left")
    mask = masks.attention_block(real, e, torch.float32)
    assert seen(mask[1, 0])[4:] == ["....x....", "....xx...", "....xxx..", "......xx.", "......xxx"]
    assert seen(mask[2, 0])[8] == ".......xx"
    _, real, e = batch("right")
    mask = masks.attention_block(real, e, torch.float32)
    assert seen(mask[1, 0])[:5] == ["x........", "xx.......", "xxx......", "..xx.....", "..xxx...."]


def test_joint_is_the_picture_of_the_two_branches():
    _, real, s = batch("left", [[5, 6, 7, 2, 8, 9]], [2])
    mask = masks.joint(real, s, s + 2, torch.float32)
    assert seen(mask[0, 0]) == ["x.....", "xx....", "xxx...", "xxxx..", "xx..x.", "xx..xx"]


def test_each_row_has_its_own_branches():
    _, real, s = batch("left", places=SELF_START)
    _, _, p = batch("left", places=NEXT_START)
    mask = masks.joint(real, s, p, torch.float32)
    assert seen(mask[1, 0])[4:] == ["....x....", "....xx...", "....xxx..", "....x..x.", "....x..xx"]
    assert seen(mask[2, 0])[8] == "xxxx...xx"
    _, real, s = batch("right", places=SELF_START)
    _, _, p = batch("right", places=NEXT_START)
    mask = masks.joint(real, s, p, torch.float32)
    assert seen(mask[1, 0])[:5] == ["x........", "xx.......", "xxx......", "x..x.....", "x..xx...."]


def test_causal_rows_see_all_real_tokens_before_them():
    _, real, _ = batch("left")
    mask = masks.causal(real, torch.float32)
    assert seen(mask[1, 0])[4:6] == ["....x....", "....xx..."]
    assert seen(mask[1, 0])[8] == "....xxxxx"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_is_a_finite_float_and_a_pad_sees_only_what_is_harmless(side: str, dtype: torch.dtype):
    _, real, e = batch(side)
    joint = masks.joint(real, e, e + 1, dtype)
    for mask in (masks.causal(real, dtype), masks.attention_block(real, e, dtype), joint):
        assert mask.dtype == dtype
        assert mask.shape == (3, 1, 9, 9)
        assert masks.check(mask) is mask
        assert (mask == 0).any(-1).all(), "a row that sees nothing"
        of_real_rows = mask.masked_fill(~real.bool()[:, None, :, None], -1)
        assert not ((of_real_rows == 0) & ~real.bool()[:, None, None, :]).any(), "a real token sees a pad"


def test_the_fp32_mask_survives_a_cast_to_bf16():
    _, real, e = batch()
    mask = masks.attention_block(real, e, torch.float32).to(torch.bfloat16)
    assert torch.isfinite(mask).all()
    assert mask.min() == torch.finfo(torch.bfloat16).min


def test_boolean_and_integer_masks_are_rejected():
    _, real, e = batch()
    mask = masks.attention_block(real, e, torch.float32) == 0
    for wrong in (mask, mask.long()):
        with pytest.raises(ValueError, match="silently wrong under eager"):
            masks.check(wrong)


def test_infinite_and_misshapen_masks_are_rejected():
    _, real, e = batch()
    mask = masks.attention_block(real, e, torch.float32)
    with pytest.raises(ValueError, match="infinite"):
        masks.check(mask.masked_fill(mask < 0, float("-inf")))
    with pytest.raises(ValueError, match="shape"):
        masks.check(mask[:, 0])


def test_why_boolean_masks_are_rejected(backbone_directory: Path):
    ids, real, e = batch()
    mask = masks.attention_block(real, e, torch.float32)
    eager = model(backbone_directory, "eager")
    right, wrong = real_logits(eager, ids, mask, real), real_logits(eager, ids, mask == 0, real)
    assert max((a - b).abs().max() for a, b in zip(right, wrong, strict=True)) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("kind", ["causal", "block", "joint"])
def test_eager_equals_sdpa(backbone_directory: Path, side: str, dtype: torch.dtype, tolerance: float, kind: str):
    ids, real, e = batch(side)
    made = {
        "causal": masks.causal(real, dtype),
        "block": masks.attention_block(real, e, dtype),
        "joint": masks.joint(real, e - 1, e + 1, dtype),
    }
    mask = made[kind]
    outcome = [real_logits(model(backbone_directory, name, dtype), ids, mask, real) for name in ("eager", "sdpa")]
    for eager, sdpa in zip(*outcome, strict=True):
        torch.testing.assert_close(eager, sdpa, atol=tolerance, rtol=0)


def test_the_causal_mask_equals_the_models_own(backbone_directory: Path):
    ids, real, _ = batch()
    llm = model(backbone_directory)
    ours, theirs = real_logits(llm, ids, masks.causal(real, torch.float32), real), real_logits(llm, ids, real, real)
    for mine, own in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, own, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_do_not_depend_on_batch_size_neighbours_or_padding_side(backbone_directory: Path, side: str):
    llm = model(backbone_directory)
    ids, real, e = batch(side)
    together = real_logits(llm, ids, masks.attention_block(real, e, torch.float32), real)
    for row, place, expected in zip(ROWS, EMBEDDING, together, strict=True):
        ids, real, e = batch("left", [row], [place])
        alone = real_logits(llm, ids, masks.attention_block(real, e, torch.float32), real)[0]
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padded_rows_never_make_nan(backbone_directory: Path, attention: str):
    ids, real, e = batch("left")
    llm = model(backbone_directory, attention).train()
    mask = masks.attention_block(real, e, torch.float32)
    llm(input_ids=ids, attention_mask=mask, use_cache=False).logits.square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in llm.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_fp32_mask_works_under_bf16_autocast(backbone_directory: Path, attention: str):
    ids, real, e = batch("left")
    llm = model(backbone_directory, attention)
    mask = masks.attention_block(real, e, torch.float32)
    exact = real_logits(llm, ids, mask, real)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = real_logits(llm, ids, mask, real)
    for one, other in zip(exact, rounded, strict=True):
        torch.testing.assert_close(one, other.float(), atol=5e-2, rtol=0)
