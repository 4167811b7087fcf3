"""Sets a model's attention, causal or bidirectional, and tests it, because not every architecture obeys.

What is told is the configuration's `is_causal`, which transformers 5 obeys, and a mask of four dimensions. Some architectures
have a causal mask of their own, or take no such mask, and what they compute instead looks like a result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llm_retriever.errors import InputError
from llm_retriever.models import masks
from llm_retriever.processes.crashes import Crash, crash_of

WIDTH, HALF, PADDED = 8, 4, 6
"""Of the row that is changed in one token to see which others notice; `PADDED` = its real tokens where it has pads."""
NOTICED = 1e-3
"""Share of the change at a changed token that is more than rounding at another one."""


def set_attention(model: Any, attention: str) -> None:
    """Makes a model causal or bidirectional; no code of the model is replaced.

    The configuration says so, and is saved. Some architectures (StableLM, Nemotron) do not hand it on to their layers, which
    are causal then wherever a batch has no pads: the layers are told as well.

    Args:
        model: A causal LM, or its inner model.
        attention: `causal` or `bidirectional`.
    """
    is_causal = attention == "causal"
    for config in (model.config, model.config.get_text_config()):
        config.is_causal = is_causal
    for module in model.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            module.is_causal = is_causal


def check_bidirectional(model: Any) -> None:
    """Raises InputError for a model that stays causal, with pads or without; passes under ZeRO-3, where weights are sharded.

    Raises:
        InputError: Its tokens do not see those behind them, or see pads; or it computes no finite states.
    """
    if _is_sharded(model):
        return
    _check_states(model)
    for real in (WIDTH, PADDED):
        mask = (torch.arange(WIDTH, device=model.device) < real).long()[None]
        change = _changes(model, mask, changed=real - 1)
        beside = "" if real == WIDTH else " in a row with pads"
        if change is None or not change[: real - 1].max() > NOTICED * change[real - 1]:
            raise _refusal(model, f"cannot be bidirectional: its tokens do not see those behind them{beside}")
    change = _changes(model, mask, changed=PADDED)
    if change is None or not change[:PADDED].max() <= NOTICED * change[PADDED]:
        raise _refusal(model, "cannot be bidirectional: its tokens see the pads of their row")


def check_attention_mask(model: Any) -> None:
    """Raises InputError for a model that ignores attention masks; passes under ZeRO-3, where weights are sharded.

    Raises:
        InputError: Tokens see what the mask hides from them, or the model takes no such mask; or it computes no finite states.
    """
    if _is_sharded(model):
        return
    _check_states(model)
    mask = masks.causal(torch.ones(1, WIDTH, device=model.device), model.dtype)
    mask[:, :, HALF:, :HALF] = mask.min()
    change = _changes(model, mask, changed=0)
    if change is None or not change[HALF:].max() <= NOTICED * change[0]:
        raise _refusal(model, "takes no mask that hides some of the text from some of its tokens")


def _check_states(model: Any) -> None:
    """Raises InputError for a model that computes no states of a plain row, or such as are not finite: no matter of masks."""
    row = torch.arange(WIDTH, device=model.device)[None]
    states = _states(model, row, torch.ones_like(row))
    if isinstance(states, Exception):
        said = str(states).partition("\n")[0] or type(states).__name__
        problem = f"{type(model).__name__} computes no states of the tokens of a text ({said})"
        raise InputError(problem, file=model.config.name_or_path or None, hint="use another backbone") from states
    if states.isfinite().all():
        return
    file = model.config.name_or_path or None
    spoilt = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    if spoilt is not None:
        raise InputError(f"the weights of {spoilt} are not all finite numbers", file=file, hint="copy or make it again")
    problem = f"the model computes states that are not finite in {str(model.dtype).removeprefix('torch.')}"
    raise InputError(problem, file=file, field="precision", hint="use another precision, or another backbone")


def _is_sharded(model: Any) -> bool:
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


def _changes(model: Any, mask: Tensor, changed: int) -> Tensor | None:
    """Change of each token's state, [width], when one token changes; None where the model cannot be run so."""
    rows = torch.arange(WIDTH, device=model.device).repeat(2, 1)
    rows[1, changed] = WIDTH
    before, after = (_states(model, row[None], mask) for row in rows)
    if isinstance(before, Exception) or isinstance(after, Exception):
        return None
    return (before - after).abs().amax(dim=(0, 2))


@torch.no_grad()
def _states(model: Any, ids: Tensor, mask: Tensor) -> Tensor | Exception:
    """States of the last layer, [rows, width, dimension], or why the model computes none."""
    training = model.training
    try:
        states: Tensor = model.eval().base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        if crash_of(error) is not Crash.LASTING:
            raise
        return error
    finally:
        model.train(training)
    return states


def _refusal(model: Any, problem: str) -> InputError:
    return InputError(
        f"{type(model).__name__} {problem}",
        file=model.config.name_or_path or None,
        field="method",
        hint="use another method, or a backbone such as Llama, Mistral, Qwen or Gemma",
    )
