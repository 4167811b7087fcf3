"""Finds a recipe's projections among a model's modules: architectures name them otherwise, and fuse some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_retriever.errors import InputError

_QKV = ("q_proj", "k_proj", "v_proj")
_ROLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qkv_proj", "query_key_value", "c_attn", "Wqkv"), _QKV),
    **dict.fromkeys(("out_proj", "dense"), ("o_proj",)),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w1": ("gate_proj",),
    **dict.fromkeys(("fc1", "fc_in", "c_fc", "dense_h_to_4h", "w3"), ("up_proj",)),
    **dict.fromkeys(("fc2", "fc_out", "c_proj", "dense_4h_to_h", "w2"), ("down_proj",)),
    "attn.c_proj": ("o_proj",),
}
"""What else than by their own names (those of Llama) the projections are called."""
_OWN = (*_QKV, "o_proj", "gate_proj", "up_proj", "down_proj")
_ROUTERS = ("gate", "router", "shared_expert_gate")
"""Linear layers that choose experts; they are no projections."""


def projections(model: Any, wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Finds the modules that an adapter of some projections goes to.

    Args:
        model: A causal LM, or its inner model.
        wanted: Projections by the names that Llama has for them.

    Returns:
        Ends of the modules' names, and names of the weights of experts, which stay as they are: several experts in one
        tensor are no linear layers.

    Raises:
        InputError: The model has none of them, layers that no projection stands for, or some that join a wanted projection
            and another one.
    """
    modules, unknown = set[str](), set[str]()
    for path, module in _layers(model):
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        name = _name(path)
        roles = _ROLES.get(name, (name,) if name in _OWN else ())
        chosen = set(roles) & set(wanted)
        if chosen and chosen != set(roles):
            raise _refusal(model, f"{name} joins {', '.join(roles)}, and not all of them are to be adapted")
        modules |= {name} if chosen else set()
        unknown |= set() if roles or name in _ROUTERS else {name}
    if not modules:
        raise _refusal(model, f"it has none of {', '.join(wanted)}")
    if unknown:
        raise _refusal(model, f"it computes with {', '.join(sorted(unknown))} as well, which are not known")
    return sorted(modules), sorted({_name(path) for path, weight in _weights(model) if _dimensions(weight) == 3})


def _name(path: str) -> str:
    """Returns the end of a module's name that tells its part."""
    *_, before, name = ("", *path.split("."))
    return f"{before}.{name}" if f"{before}.{name}" in _ROLES else name


def _layers(model: Any) -> list[tuple[str, nn.Module]]:
    return [(path, module) for path, module in model.base_model.named_modules() if _is_in_layer(path)]


def _weights(model: Any) -> list[tuple[str, nn.Parameter]]:
    return [(path, weight) for path, weight in model.base_model.named_parameters() if _is_in_layer(path)]


def _dimensions(weight: nn.Parameter) -> int:
    """Number of a weight's dimensions, also where ZeRO-3 holds a part of it alone."""
    return len(getattr(weight, "ds_shape", weight.shape))


def _is_in_layer(path: str) -> bool:
    """Whether a name has the number of a layer in it; embeddings and the ways in and out have none."""
    return any(part.isdigit() for part in path.split("."))


def _refusal(model: Any, reason: str) -> InputError:
    hint = "use tune_weights=full, by hand --tune full"
    return InputError(f"no LoRA adapter fits {type(model).__name__}: {reason}", field="tune", hint=hint)
