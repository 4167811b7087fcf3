"""Provenance of the figures: what the systems are, what they cost, and with which versions they were measured."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from llm_retriever.data.collection import Collection
from llm_retriever.evaluation import efficiency
from llm_retriever.evaluation.systems import DenseSystem
from llm_retriever.files.code_digest import installed_versions
from llm_retriever.models.card import RetrieverCard

PACKAGES = ("llm-retriever", "torch", "transformers", "faiss-cpu", "pytrec_eval-terrier", "scipy", "statsmodels")


def corpus_name(collection: Collection) -> str:
    """Name of the collection: the last part of its source."""
    uri = str(collection.manifest["source"]["uri"]).rstrip("/")
    return uri.removeprefix("demo:").rsplit("/", 1)[-1] or uri


def description(card: RetrieverCard) -> dict[str, Any]:
    """Describes the retriever in a sentence, with the digest of its card."""
    return {"description": f"the tuned model {made_of(card)}", "card": card.digest()}


def made_of(card: RetrieverCard) -> str:
    """Names method and stages of a retriever, in brackets."""
    stages = " then ".join(stage.stage for stage in card.lineage.stages) or "nothing"
    return f"({card.method}; trained by {stages})"


def costs(
    card: RetrieverCard,
    tuned: DenseSystem,
    untuned_seconds: float | None,
    encoder_seconds: Mapping[str, float] | None = None,
    production_seconds: float | None = None,
) -> dict[str, Any]:
    """Times and sizes. Missing measurements are omitted.

    Args:
        card: Its lineage has the times of the training stages.
        tuned: The retriever after its searches.
        untuned_seconds: Time in which the corpus was encoded with the un-tuned backbone and searched.
        encoder_seconds: The same of published encoders, by name.
        production_seconds: The same of the retriever in production.
    """
    manifest = tuned.index.manifest
    timings = manifest.timings
    figures: dict[str, Any] = {
        "training": [
            {"stage": stage.stage, "seconds": stage.seconds, "examples": stage.examples}
            for stage in card.lineage.stages
        ],
        "training_seconds": sum(stage.seconds for stage in card.lineage.stages),
        "index_seconds": efficiency.index_seconds(manifest),
        "passages_per_second": timings.get("passages_per_second"),
        "tokens_per_second": timings.get("tokens_per_second"),
        "padding_share": timings.get("padding_share"),
        "index_bytes": efficiency.index_bytes(manifest),
        "query_encoding_ms": 1000 * tuned.encoding_seconds / tuned.queries,
        "query_search_ms": 1000 * tuned.search_seconds / tuned.queries,
        "production_seconds": production_seconds,
        "untuned_backbone_seconds": untuned_seconds,
        "encoder_seconds": encoder_seconds or None,
        "device": tuned.device,
    }
    return {name: value for name, value in figures.items() if value is not None}


def versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on; those not installed are omitted."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)
