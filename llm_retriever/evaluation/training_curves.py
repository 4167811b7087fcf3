"""Training curves of the report: losses of both stages, where their outputs bring a log."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_retriever import files
from llm_retriever.models.card import RetrieverCard, load_lineage
from llm_retriever.reporting.charts import thinned
from llm_retriever.settings import EvaluationSettings

if TYPE_CHECKING:
    from llm_retriever.evaluation.evaluation_run import Bench
    from llm_retriever.evaluation.optional_analyses import Paths

TRAINING_LOG = "training_log.json"


def extra(settings: EvaluationSettings, bench: Bench, card: RetrieverCard, paths: Paths) -> dict[str, Any]:
    """Losses over the updates, thinned to what a chart can show.

    Returns:
        `curves`: a list of `title` and `points`, pairs of update and loss.
    """
    curves = []
    if paths.adapted is not None and (paths.adapted / TRAINING_LOG).exists():
        stages = load_lineage(paths.adapted).stages
        curves.append(_curve(f"Loss of stage one ({stages[-1].stage})" if stages else "Loss", paths.adapted))
    if (paths.retriever / TRAINING_LOG).exists():
        curves.append(_curve("Loss of the contrastive tuning", paths.retriever))
    return {"curves": [curve for curve in curves if curve["points"]]}


def _curve(title: str, directory: Path) -> dict[str, Any]:
    steps = files.read_json(directory / TRAINING_LOG).get("steps", [])
    return {"title": title, "points": thinned([(step["step"], step["loss"]) for step in steps if "loss" in step])}
