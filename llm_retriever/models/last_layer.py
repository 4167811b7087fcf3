"""The last layer of a causal model computes only the positions that are read.

A vector is read at one position or a few, and a loss at those of its targets. Up to the last layer every position matters,
because later ones attend to it; in the last layer only its keys and values do. Its query, its attention output and its
feed-forward part are left out where nothing is read: nine tenths of a layer, with the same states at the positions that are.

The layer is entered twice. The first call ends where the layer hands its keys and values to the cache; the second has the
positions that are read alone, and finds the keys and values of all in the cache. Not every architecture works like that: each
model is tried first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llm_retriever.models.layers import layer_lists
from llm_retriever.models.shared_prefix import is_plain_causal, tried

DEVICES = {"cpu"}
"""Where it was measured."""
ATTENTION = ("eager", "products", "sdpa")
"""Implementations that take a mask with a row for every query."""
MOST = 0.5
"""Share of the positions that may be read: the first call costs a tenth of a layer."""


class LastLayer:
    """Reads a model at some positions; one for every model, which it tries once."""

    def __init__(self) -> None:
        self._possible: bool | None = None

    def states(self, model: Any, read: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Computes last hidden states where they are read, or everywhere.

        Args:
            model: An inner model, perhaps wrapped by PEFT, DistributedDataParallel or DeepSpeed.
            read: bool [rows, width]; the positions that are read.
            inputs: What the model is given.

        Returns:
            Float [rows, positions, dimension], and bool [rows, positions], which of them are read, in their order.
        """
        with self._narrowed(model, read) as kept:
            return model(**inputs).last_hidden_state, kept

    def logits(self, model: Any, read: Tensor, **inputs: Any) -> Tensor:
        """Computes logits where they are read, [read, vocabulary], row after row; arguments as of `states`, of a causal LM."""
        with self._narrowed(model, read) as kept:
            logits: Tensor = model(logits_to_keep=kept, **inputs).logits
            return logits

    @contextlib.contextmanager
    def _narrowed(self, model: Any, read: Tensor) -> Iterator[Tensor]:
        most = int(read.sum(dim=1).max())
        if read.device.type in DEVICES and 0 < most <= MOST * read.shape[1] and self._can(model):
            positions = columns_of(read, most)
            with narrowed(model, positions):
                yield read.gather(1, positions)
        else:
            yield read

    def _can(self, model: Any) -> bool:
        if self._possible is None:
            self._possible = can_narrow(model)
        return self._possible


def columns_of(read: Tensor, most: int) -> Tensor:
    """The columns that are read, int64 [rows, most], in their order; rows with fewer are filled up with others."""
    return (~read).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]


@contextlib.contextmanager
def narrowed(model: Any, positions: Tensor) -> Iterator[None]:
    """Makes the last layer of a model compute some positions alone while inside; its output has no others.

    Args:
        model: A causal one, perhaps wrapped.
        positions: int64 [rows, positions], columns of the ids that the model is given.
    """
    (layers,) = layer_lists(getattr(model, "module", model))
    hook = layers[-1].register_forward_pre_hook(
        lambda layer, given, named: _narrow(layer, positions, *given, **named), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


class _KeptError(Exception):
    """Ends a layer's call when its keys and values are known."""


class _Keeper:
    """Stands for a layer's cache: keeps the keys and values of the first call, and gives them to the second."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.states: tuple[Tensor, Tensor] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def update(self, keys: Tensor, values: Tensor, *place: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if self.states is not None:
            return self.states
        self.states = (keys, values) if self._cache is None else self._cache.update(keys, values, *place, **named)
        raise _KeptError


def _narrow(layer: nn.Module, positions: Tensor, hidden: Tensor, *given: Any, **named: Any) -> tuple[Any, Any]:
    """Arguments of the second call, of those of the first."""
    keeper = _Keeper(named.get("past_key_values"))
    named["past_key_values"] = keeper
    with contextlib.suppress(_KeptError):
        layer.forward(hidden, *given, **named)
    if keeper.states is None:
        raise ValueError(f"{type(layer).__name__} hands nothing to its cache")
    mask, columns = named.pop("attention_mask", None), keeper.states[0].shape[2]
    named = {name: _at(value, positions, hidden.shape[1]) for name, value in named.items()}
    named["attention_mask"] = _mask(mask, positions, hidden, columns)
    return (_at(hidden, positions, hidden.shape[1]), *given), named


def _at(value: Any, positions: Tensor, width: int) -> Any:
    """What is left of an argument at some positions: of [rows or 1, width, …] tensors, and of tuples of them."""
    if isinstance(value, tuple):
        return tuple(_at(part, positions, width) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2 or value.shape[1] != width:
        return value
    rows = value.expand(len(positions), *value.shape[1:])
    return rows.gather(1, positions.view(*positions.shape, *[1] * (value.ndim - 2)).expand(-1, -1, *value.shape[2:]))


def _mask(mask: Tensor | None, positions: Tensor, hidden: Tensor, columns: int) -> Tensor:
    """Rows of a mask, [rows, 1, positions, columns]; none is causal, and behind a prefix that all see."""
    if mask is not None:
        rows = mask.expand(len(positions), *mask.shape[1:])
        return rows.gather(2, positions[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
    behind = columns - hidden.shape[1]
    hides = torch.arange(columns, device=positions.device) > positions[:, None, :, None] + behind
    return torch.zeros(hides.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(
        hides, torch.finfo(hidden.dtype).min
    )


def can_narrow(model: Any) -> bool:
    """Whether a model has the same states at some positions when its last layer computes no others."""
    inner = getattr(model, "module", model)
    if not is_plain_causal(inner) or inner.config._attn_implementation not in ATTENTION:
        return False
    if len(layer_lists(inner)) != 1:
        return False

    def trial(ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        whole, width = inner(input_ids=ids, use_cache=False)[0], ids.shape[1]
        positions = torch.tensor([[width - 4, width - 1], [width - 3, 2]], device=ids.device)
        with narrowed(inner, positions):
            found = inner(input_ids=ids, use_cache=False)[0]
        return found, _at(whole, positions, width), _at(whole, positions - 1, width)

    return tried(inner, trial)
