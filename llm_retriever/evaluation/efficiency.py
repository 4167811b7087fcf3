"""Cost of a retriever: the columns of LLM-QL's Table 9 (batch size, index size, total index and training time) and more.

Times, tokens and sizes were measured by the steps. Floating-point operations are arithmetic: 2 for every weight outside
of the embedding tables and every token forward; training adds twice as many backward, half of that where only an adapter is
tuned, and one more forward with gradient checkpointing (Kaplan et al., 2020, section 2.1). So they are an order of magnitude:
every text is taken as long as allowed, which is too much, and left out are attention's own operations, the language-model head
of stage one, the second forward of the gradient cache, the loss and the optimiser.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from typing import Any

from llm_retriever.evaluation.systems import DenseSystem
from llm_retriever.indexing.shards import Manifest
from llm_retriever.indexing.stored import row_bytes
from llm_retriever.methods import ADAPTATIONS, descriptor
from llm_retriever.models.card import RetrieverCard, Stage

SECONDS_PER_HOUR = 3600
PRETRAINING = "pretraining"
"""The stage that makes a backbone from scratch; the totals leave it out, as those of published backbones do."""
FORWARD, BACKWARD, FROZEN_BACKWARD = 2, 4, 2


def table(card: RetrieverCard, tuned: DenseSystem) -> dict[str, Any]:
    """Builds the part `efficiency` of `evaluation.json`. Missing measurements are omitted.

    Args:
        card: Its lineage has what the training stages took.
        tuned: The retriever after its searches.
    """
    weights = tuned.weights
    stages = [training(stage, weights) for stage in card.lineage.stages]
    ours = [stage for stage in stages if stage["stage"] != PRETRAINING]
    batches = [stage["batch_size"] for stage in stages if "batch_size" in stage]
    return _known(
        {
            "device": tuned.device,
            "parameters": weights,
            "dimension": tuned.index.manifest.dimension,
            "dtype": tuned.index.manifest.dtype,
            "training": stages,
            "training_seconds": sum(stage["seconds"] for stage in ours),
            "training_process_hours": sum(stage["process_hours"] for stage in ours),
            "batch_size": batches[-1] if batches else None,
            **indexing(tuned.index.manifest, weights),
            **searching(tuned),
            **memory(),
        }
    )


def _known(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None}


def training(stage: Stage, weights: int | None) -> dict[str, Any]:
    """Cost of one stage; its tokens, and so its operations, are an upper bound: every text is taken as long as allowed."""
    processes = int(stage.settings.get("processes", 1))
    tokens = tokens_at_most(stage)
    operations = None if weights is None or tokens is None else weights * tokens * operations_per_weight(stage)
    schedule = stage.settings.get("schedule") or {}
    return _known(
        {
            "stage": stage.stage,
            "seconds": stage.seconds,
            "processes": processes,
            "process_hours": processes * stage.seconds / SECONDS_PER_HOUR,
            "examples": stage.examples,
            "batch_size": schedule.get("batch_size"),
            "tokens_at_most": tokens,
            "operations_at_most": operations,
        }
    )


def tokens_at_most(stage: Stage) -> int | None:
    """Upper bound of the tokens that a stage has put through the model; None where its settings do not tell."""
    settings = stage.settings
    if "tokens" in settings:
        return int(settings["tokens"])
    if "passage_length" not in settings:
        return None
    views = descriptor(stage.stage).views if stage.stage in ADAPTATIONS else 1
    passages = int(settings.get("passages_per_query", views))
    return stage.examples * (int(settings.get("query_length", 0)) + passages * int(settings["passage_length"]))


def operations_per_weight(stage: Stage) -> int:
    """Floating-point operations for every weight and token of a training stage."""
    backward = FROZEN_BACKWARD if stage.settings.get("tune") == "lora" else BACKWARD
    again = FORWARD if (stage.settings.get("schedule") or {}).get("gradient_checkpointing") else 0
    return FORWARD + backward + again


def indexing(manifest: Manifest, weights: int | None) -> dict[str, Any]:
    """Cost and size of the index."""
    tokens, seconds = sum(shard.tokens for shard in manifest.shards), manifest.timings.get("seconds")
    operations = None if weights is None else FORWARD * weights * tokens
    return {
        "index_seconds": index_seconds(manifest),
        "index_passages": manifest.count,
        "index_tokens": tokens,
        **{name: manifest.timings.get(name) for name in ("passages_per_second", "tokens_per_second", "padding_share")},
        "index_bytes": index_bytes(manifest),
        "bytes_per_passage": index_bytes(manifest) / manifest.count,
        "index_operations": operations,
        "index_operations_per_second": operations / seconds if operations and seconds else None,
    }


def index_seconds(manifest: Manifest) -> float | None:
    """Seconds of encoding, all processes together, and of building what is searched."""
    encoding = manifest.timings.get("seconds")
    built = manifest.faiss.seconds if manifest.faiss is not None else 0.0
    return None if encoding is None else encoding + built


def index_bytes(manifest: Manifest) -> int:
    """Bytes of the vectors, and of the structure for approximate search where there is one."""
    vectors = manifest.count * row_bytes(manifest.dtype, manifest.dimension)
    return vectors + (manifest.faiss.size if manifest.faiss is not None else 0)


def searching(tuned: DenseSystem) -> dict[str, float]:
    """Milliseconds of a query, in large batches, and queries per second."""
    encoding, search = (1000 * seconds / tuned.queries for seconds in (tuned.encoding_seconds, tuned.search_seconds))
    both = max(encoding + search, 1e-9)
    return {"query_encoding_ms": encoding, "query_search_ms": search, "queries_per_second": 1000 / both}


def memory() -> dict[str, int]:
    """Peak memory of this process so far, in bytes, and of its GPU where it has one."""
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_memory_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    import torch

    if torch.cuda.is_available():
        peaks["gpu_peak_bytes"] = int(torch.cuda.max_memory_allocated())
    return peaks
