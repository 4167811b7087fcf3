"""A causal LM's weights: loaded for training, given an adapter, collected from shards, merged, compared and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_retriever.methods import Lora
from llm_retriever.training import TrainingRun


def load_backbone(directory: Path, run: TrainingRun, *, tune: str, head: bool) -> Any:
    """Loads a causal LM for training; sharded from the start under ZeRO-3.

    Weights are fp32, or bf16 where they stay frozen (LoRA) or DeepSpeed keeps fp32 copies and the precision is bf16.

    Args:
        directory: A backbone directory.
        run: Its precision and DeepSpeed stage.
        tune: `full` or `lora`.
        head: True = with the language-model head (`AutoModelForCausalLM`); False = the inner model, whose output is
            `last_hidden_state`.
    """
    raise NotImplementedError


def attach_lora(model: Any, lora: Lora, seed: int) -> Any:
    """Puts a fresh LoRA adapter on a model; only the adapter is trainable then.

    Raises:
        InputError: The model has none of the projections that the adapter is for.
    """
    raise NotImplementedError


def save_model(
    model: Any,
    tokenizer: Any,
    *,
    base: Path,
    merged: Path,
    adapter: Path | None = None,
    probe: Sequence[Sequence[int]] = (),
) -> None:
    """Saves a trained model completely; every process must call it, rank 0 writes.

    `merged` becomes a causal LM with its head and tokenizer; with LoRA, `adapter` becomes a PEFT directory. Works on a
    plain, PEFT, DDP-trained or ZeRO-1/2/3-trained model, with or without head.

    Args:
        model: What was given to `training.train`.
        tokenizer: Saved beside the merged model.
        base: The backbone directory that `model` was loaded from.
        merged: An existing or new directory for the full model.
        adapter: Where the LoRA adapter goes.
        probe: Token ids of a few texts on which models are compared; random ids if empty.

    Raises:
        RuntimeError: The adapter did not train, or merging changed the vectors.
    """
    raise NotImplementedError
