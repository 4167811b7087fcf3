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

WIDTH, HALF = 8, 4
"""Of the row that is changed in one token to see which others notice."""
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
    """Raises InputError for a model that stays causal; passes under ZeRO-3, where weights are sharded.

    Raises:
        InputError: Its tokens do not see those behind them.
    """
    if _is_sharded(model):
        return
    mask = torch.ones(1, WIDTH, dtype=torch.long, device=model.device)
    change = _changes(model, mask, changed=WIDTH - 1)
    if change is None or not change[:-1].max() > NOTICED * change[-1]:
        raise _refusal(model, "cannot be bidirectional: its tokens do not see those behind them")


def check_attention_mask(model: Any) -> None:
    """Raises InputError for a model that ignores attention masks; passes under ZeRO-3, where weights are sharded.

    Raises:
        InputError: Tokens see what the mask hides from them, or the model takes no such mask.
    """
    if _is_sharded(model):
        return
    mask = masks.causal(torch.ones(1, WIDTH, device=model.device), model.dtype)
    mask[:, :, HALF:, :HALF] = mask.min()
    change = _changes(model, mask, changed=0)
    if change is None or not change[HALF:].max() <= NOTICED * change[0]:
        raise _refusal(model, "takes no mask that hides some of the text from some of its tokens")


def _is_sharded(model: Any) -> bool:
    return any(hasattr(weight, "ds_id") for weight in model.parameters())


def _changes(model: Any, mask: Tensor, changed: int) -> Tensor | None:
    """Change of each token's state, [width], when one token changes; None where the model cannot be run so."""
    rows = torch.arange(WIDTH, device=model.device).repeat(2, 1)
    rows[1, changed] = WIDTH
    training = model.training
    try:
        with torch.no_grad():
            states = [
                model.eval().base_model(input_ids=row[None], attention_mask=mask, use_cache=False) for row in rows
            ]
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None
    finally:
        model.train(training)
    return (states[0].last_hidden_state - states[1].last_hidden_state).abs().amax(dim=(0, 2))


def _refusal(model: Any, problem: str) -> InputError:
    return InputError(
        f"{type(model).__name__} {problem}",
        file=model.config.name_or_path or None,
        field="method",
        hint="use another method, or a backbone such as Llama, Mistral, Qwen or Gemma",
    )
