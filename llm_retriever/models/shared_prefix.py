"""What all rows of a batch begin with goes through a causal model once; the rows themselves begin behind it.

Under causal attention a token's states depend on what stands before it alone, so the keys and values of an instruction that
every text begins with are the same in every row. They are computed for one row and expanded to the others. Gradients flow
through them: the expansion's backward pass adds up what all rows have to say about the prefix.

Not every architecture can go on from given keys and values: each model is tried before its rows share anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

LEAST = 8
"""Tokens of a prefix that is worth being shared."""
OVERHEAD = {"cpu": 64}
"""Tokens that could be computed in the time of one more pass: sharing must spare more. Devices where it was not measured
are left out."""
TRIED, BEHIND = 6, 5
"""Tokens of the prefix, and behind it, on which a model is tried."""
TOLERATED = 0.1
"""The largest difference that sharing may make on trial, as a share of the one that leaving out the prefix makes. What is
computed wrongly differs by more, what is rounded to bf16 by less."""
OF_HEADS = ("classifier_dropout", "summary_first_dropout")
"""Settings of classifiers, which a language model's configuration has as well."""


@dataclass(frozen=True)
class SharedPrefix:
    """The tokens that rows begin with, gone through the model.

    Attributes:
        length: In tokens; 0 = nothing is shared.
        states: Keys and values of every layer, float [1, heads, length, size] each.
    """

    length: int = 0
    states: tuple[tuple[Tensor, Tensor], ...] = ()

    @classmethod
    def of(cls, model: Any, ids: Tensor, **inputs: Any) -> SharedPrefix:
        """Takes a prefix, int64 [1, length], through a model."""
        cache: Any = DynamicCache()
        model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
        states = tuple((layer.keys, layer.values) for layer in cache.layers)
        if not states:
            raise ValueError(f"{type(model).__name__} keeps no keys and values")
        return cls(ids.shape[1], states)

    def inputs(self, rows: int) -> dict[str, Any]:
        """What a model is given, beside the ids behind the prefix, to read so many rows."""
        if not self.length:
            return {"use_cache": False}
        expanded = [tuple(part.expand(rows, -1, -1, -1) for part in layer) for layer in self.states]
        return {"use_cache": True, "past_key_values": DynamicCache(expanded)}


NOTHING = SharedPrefix()


class PrefixSharing:
    """Finds what the rows of a batch can share; one for every model, which it tries once."""

    def __init__(self) -> None:
        self._possible: bool | None = None

    def length(self, ids: Tensor, room: Tensor) -> int:
        """Tokens of the prefix that rows have in common, 0 where sharing it is not worth a pass.

        Args:
            ids: int64 [rows, width], padded on the right.
            room: int64 [rows]; tokens of each row that may be part of the prefix.
        """
        if ids.device.type not in OVERHEAD:
            return 0
        length = common_length(ids, room)
        return length if length >= LEAST and length * (len(ids) - 1) > OVERHEAD[ids.device.type] else 0

    def prefix(self, model: Any, ids: Tensor, length: int, **inputs: Any) -> SharedPrefix:
        """The first tokens of all rows, gone through a model; none where it cannot go on from there.

        Args:
            model: A causal one, perhaps wrapped by PEFT, DistributedDataParallel or DeepSpeed.
            ids: int64 [rows, width], padded on the right.
            length: Of the prefix.
            inputs: What the model is given beside ids.
        """
        if length and self._possible is None:
            self._possible = can_share(model)
        return SharedPrefix.of(model, ids[:1, :length], **inputs) if length and self._possible else NOTHING


def common_length(ids: Tensor, room: Tensor) -> int:
    """Tokens that all rows begin with, at most the least `room` of a row."""
    same = (ids == ids[:1]).all(dim=0)[: max(0, int(room.min()))]
    return int(same.to(torch.int64).cumprod(dim=0).sum())


def can_share(model: Any) -> bool:
    """Whether rows that share a prefix have the vectors and gradients of rows that do not.

    Dropout would be drawn once for all rows.
    """
    inner = getattr(model, "module", model)
    if not is_plain_causal(inner) or (inner.training and _has_dropout(inner)):
        return False

    def trial(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole, alone = (inner(input_ids=ids, use_cache=False)[0][:, -BEHIND:] for ids in (rows, rows[:, TRIED:]))
        shared = inner(input_ids=rows[:, TRIED:], **SharedPrefix.of(inner, rows[:1, :TRIED]).inputs(2))[0]
        return shared, whole, alone

    return tried(inner, trial)


def is_plain_causal(model: Any) -> bool:
    """Whether an unwrapped model is causal, keeps keys and values, and may be called as often as each process likes.

    Checkpointed layers keep no keys; where weights are sharded, all processes must call the model equally often.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(config, "is_causal", True) is False or getattr(config, "is_encoder_decoder", False):
        return False
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return False
    return not (model.training and any(_is_checkpointed(module) for module in model.modules()))


def _is_checkpointed(module: nn.Module) -> bool:
    return bool(getattr(module, "gradient_checkpointing", False))


def _has_dropout(model: Any) -> bool:
    settings = {n: v for n, v in model.config.get_text_config().to_dict().items() if "drop" in n and n not in OF_HEADS}
    named = [value for value in settings.values() if isinstance(value, int | float)]
    return any(named) or any(module.p for module in model.modules() if isinstance(module, nn.Dropout))


@torch.no_grad()
def tried(model: Any, trial: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> bool:
    """Whether a shorter way through a model gives what the plain one does.

    Args:
        model: Unwrapped; without dropout while it is tried.
        trial: Of two rows of ids, int64 [2, TRIED + BEHIND], makes what the shorter way gives, what the plain one gives, and
            what would be wrong. Errors say that the model does not allow it.
    """
    device = next(model.parameters()).device
    rows = (torch.arange(TRIED + BEHIND, device=device) % model.config.get_text_config().vocab_size).repeat(2, 1)
    rows[1, TRIED:] = rows[1, TRIED:].flip(0)
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        found, expected, wrong = trial(rows)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # An unusual layer may fail in any way.
        return False
    finally:
        for module, trains in modes:
            module.training = trains
    return bool((found - expected).abs().max() <= TOLERATED * (wrong - expected).abs().max())
