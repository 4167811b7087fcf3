"""Checkpoints of a training: where they lie, when they are complete, how they travel to the store and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_retriever.training import TrainingRun


def training_run(settings: Any, title: str, output: Path, *digests: str) -> TrainingRun:
    """Resolves the settings of `adapt_backbone` or `tune_retriever` into a run.

    Args:
        settings: With precision, deepspeed, seed, checkpoint_uri, checkpoint_minutes.
        title: What progress shows.
        output: The step's output directory; without a checkpoint_uri the checkpoints lie beside it.
        digests: Of the step's inputs; with the settings they name the checkpoints, so that only the same training resumes.
    """
    raise NotImplementedError


def discard(run: TrainingRun) -> None:
    """Removes the checkpoints of a training whose result is complete, locally and in the store."""
    raise NotImplementedError
