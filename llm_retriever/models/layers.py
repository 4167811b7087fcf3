"""Drops the upper layers of a decoder before anything is trained.

Sources: L3Prune (arXiv 2410.14578) and EffiR (arXiv 2512.20612), which find that retrievers lose little by it.
"""

from __future__ import annotations

from typing import Any

from llm_retriever.errors import InputError


def layer_lists(model: Any) -> list[Any]:
    """The lists of modules in a model that have an entry for each of its layers: one, unless it is an unusual model."""
    from torch import nn

    layers = int(model.config.get_text_config().num_hidden_layers)
    return [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]


def keep_layers(model: Any, layers: int, label: str) -> int:
    """Drops all but the first layers of a causal LM, in place; its configuration follows.

    Args:
        model: A causal LM of transformers.
        layers: How many stay.
        label: What the user calls the model; error messages name it.

    Returns:
        How many it had.

    Raises:
        InputError: It has fewer, or its layers are not one list.
    """
    config = model.config.get_text_config()
    had = int(config.num_hidden_layers)
    if layers > had:
        raise InputError(f"has {had} layers", file=label, field="layers", hint=f"keep 1 to {had}, or 0 = all")
    stacks = layer_lists(model)
    if len(stacks) != 1:
        raise InputError("its layers are not one list of modules", file=label, field="layers", hint="keep all: 0")
    del stacks[0][layers:]
    for key, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == had:  # As layer_types: one entry a layer.
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers
    return had
