"""The parts of a stage-one objective: its examples, their batches and its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_retriever.methods import AdaptationRecipe, Method
from llm_retriever.training.train import LossFunction, TrainingDataset


@dataclass(frozen=True)
class Task:
    """The inputs of an adaptation.

    Attributes:
        recipe: Resolved, of the adaptation's own kind.
        method: Row of the retrieval method whose prompts and embedding tokens are trained.
        tokenizer: The backbone's, with all embedding tokens.
        collection: Directory of the collection.
        training_set: Directory of the training set.
        seed: Of every draw.
    """

    recipe: AdaptationRecipe
    method: Method
    tokenizer: Any
    collection: Path
    training_set: Path
    seed: int


@dataclass(frozen=True)
class Objective:
    """An adaptation, ready to be trained.

    Attributes:
        dataset: Examples; every draw follows from (seed, item, epoch).
        collate: Makes a batch of tensors of a list of examples; has `input_ids` and `attention_mask`.
        loss: Of the model and a batch.
        head: Whether the loss needs the language-model head.
        prepare: Changes the model before training, as its dropout.
    """

    dataset: TrainingDataset
    collate: Callable[[Sequence[Any]], dict[str, Tensor]]
    loss: LossFunction
    head: bool = True
    prepare: Callable[[Any], None] = lambda model: None
