"""What stands beside the figures: what the systems are, what they cost, and with which versions they were measured."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.card import RetrieverCard
from llm_retriever.collection import Collection
from llm_retriever.evaluation.report import Curve
from llm_retriever.evaluation.splits import BACKBONE, BM25, RETRIEVER, SplitResults
from llm_retriever.evaluation.systems import DenseSystem
from llm_retriever.indexing.shards import DTYPES

TRAINING_LOG = "training_log.json"
PACKAGES = ("llm-retriever", "torch", "transformers", "faiss-cpu", "pytrec_eval-terrier", "scipy", "statsmodels")


def corpus_name(collection: Collection) -> str:
    """What the collection is called: the last part of its source."""
    uri = str(collection.manifest["source"]["uri"]).rstrip("/")
    return uri.removeprefix("demo:").rsplit("/", 1)[-1] or uri


def descriptions(card: RetrieverCard, bm25: Mapping[str, Any], splits: list[SplitResults]) -> dict[str, dict[str, Any]]:
    """One sentence a system that was evaluated, and its parameters."""
    stages = " then ".join(stage.stage for stage in card.lineage.stages) or "nothing"
    told: dict[str, dict[str, Any]] = {
        RETRIEVER: {"description": f"the tuned model ({card.method}; trained by {stages})", "card": card.digest()},
        BM25: {"description": "lexical search" + _parameters(bm25), "parameters": dict(bm25)},
        BACKBONE: {"description": "the same backbone before any training, worded and read out like the retriever"},
    }
    evaluated = {name for split in splits for name in split.judged}
    return {name: facts for name, facts in told.items() if name in evaluated}


def _parameters(values: Mapping[str, Any]) -> str:
    return " with " + ", ".join(f"{name} {value}" for name, value in values.items()) if values else ""


def costs(card: RetrieverCard, tuned: DenseSystem, untuned_seconds: float | None) -> dict[str, Any]:
    """Times and sizes; a figure that nobody took down is left out.

    Args:
        card: Its lineage has the times of the training stages.
        tuned: The retriever after its searches.
        untuned_seconds: Time in which the un-tuned backbone was encoded and searched.
    """
    manifest = tuned.index.manifest
    timings = manifest.timings
    found: dict[str, Any] = {
        "training": [
            {"stage": stage.stage, "seconds": stage.seconds, "examples": stage.examples}
            for stage in card.lineage.stages
        ],
        "training_seconds": sum(stage.seconds for stage in card.lineage.stages),
        "index_seconds": timings.get("seconds"),
        "passages_per_second": timings.get("passages_per_second"),
        "tokens_per_second": timings.get("tokens_per_second"),
        "padding_share": timings.get("padding_share"),
        "index_bytes": manifest.count * manifest.dimension * DTYPES[manifest.dtype].itemsize,
        "query_encoding_ms": 1000 * tuned.encoding_seconds / tuned.queries,
        "query_search_ms": 1000 * tuned.search_seconds / tuned.queries,
        "untuned_backbone_seconds": untuned_seconds,
        "device": str(tuned.retriever.model.device),
    }
    return {name: value for name, value in found.items() if value is not None}


def versions() -> dict[str, str]:
    """Versions of what the figures depend on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def curves(retriever: Path) -> list[Curve]:
    """The loss curve of the last training stage, where the retriever brings its log."""
    path = retriever / TRAINING_LOG
    if not path.exists():
        return []
    steps = files.read_json(path).get("steps", [])
    return [Curve("Loss of the contrastive tuning", [(s["step"], s["loss"]) for s in steps if "loss" in s])]
