"""Results of the objectives on a given collection: each adapts the same backbone, is tuned on the same negatives, and searches.

The search is exact, a product of matrices. nDCG@10 is that of trec_eval; every objective is compared with `none` by the paired
t-test and by a randomisation test, not corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.gpu import inputs
from benchmarks.gpu.record import Block
from llm_retriever.adaptation.adapt import adapt
from llm_retriever.contrastive.tuning import tune
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.settings import AdaptationSettings, TuningSettings

CHAIN = {"none": "repllama", "ql": "llm-ql", "ebae_ebar": "llama2vec", "mntp": "llm2vec"}
"""Objectives, and the method that each is tuned by."""
DEPTH, DRAWS = 10, 10_000
AT_ONCE = 256
"""Queries of a product."""
Scores = dict[str, dict[str, float]]
"""nDCG@10 by query, by split."""


def run(block: Block) -> None:
    """Trains and evaluates every objective."""
    given = block.given
    paths = [given.backbone, given.collection, given.training_set]
    if not any(paths) and given.tiny:
        paths = [block.scratch / name for name in ("backbone", "collection", "training_set")]
        inputs.write_backbone(paths[0])
        inputs.write_negatives(inputs.write_collection(paths[1]), paths[2])
    found: dict[str, Scores] = {}
    for objective in CHAIN:
        block.item(objective, partial(measured, objective, paths, block, found))


def measured(objective: str, paths: list[Path], block: Block, found: dict[str, Scores]) -> dict[str, Any]:
    """Adapts, tunes and evaluates."""
    if not all(paths):
        raise ValueError("results needs --backbone, --collection and --training-set")
    retriever = trained(objective, paths, block)
    collection = Collection.open(paths[1])
    ids = [passage.id for passage in collection.passages()]
    vectors = torch.from_numpy(retriever.encode_passages(list(collection.passages()))).to(block.device)
    figures: dict[str, Any] = {}
    for split in block.given.splits:
        texts = collection.queries(split)
        best = nearest(torch.from_numpy(retriever.encode_queries(list(texts.values()))).to(block.device), vectors)
        rankings = {name: [ids[place] for place in row] for name, row in zip(texts, best, strict=True)}
        scores = {name: ndcg(rankings[name], grades) for name, grades in collection.qrels(split).items()}
        found.setdefault(objective, {})[split] = scores
        figures[f"{split} nDCG@10"] = math.fsum(scores.values()) / len(scores)
        if objective != "none" and split in found.get("none", {}):
            figures |= {f"{split} {name}": p for name, p in significance(scores, found["none"][split]).items()}
    return figures


def trained(objective: str, paths: list[Path], block: Block) -> Retriever:
    """The retriever of an objective and its method."""
    backbone, collection, training_set = paths
    adapted, tuned = (block.scratch / kind / objective for kind in ("adapted", "tuned"))
    few: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4} if block.given.tiny else {}
    one: dict[str, Any] = {"epochs": 1, "max_steps": block.given.steps, "batch_size": 32, "micro_batch_size": 32} | few
    adapt(AdaptationSettings(method=objective, **one), backbone, collection, training_set, adapted)
    lengths = {"query_length": 96, "passage_length": 200, "passages_per_query": 8}
    tune(TuningSettings(method=CHAIN[objective], **lengths, **one), adapted, collection, training_set, tuned)
    return Retriever.load(tuned, device=block.device)


def nearest(queries: torch.Tensor, passages: torch.Tensor) -> list[list[int]]:
    """Positions of the best passages of each query, best first."""
    depth = min(DEPTH, len(passages))
    return [row for part in queries.split(AT_ONCE) for row in (part @ passages.T).topk(depth).indices.tolist()]


def ndcg(ranking: list[str], grades: Mapping[str, int]) -> float:
    """nDCG@10 with the grade as gain, as trec_eval computes it."""
    gains = [max(0, grades.get(passage, 0)) for passage in ranking[:DEPTH]]
    ideal = sorted((max(0, grade) for grade in grades.values()), reverse=True)[:DEPTH]
    found, best = (sum(gain / math.log2(rank + 2) for rank, gain in enumerate(row)) for row in (gains, ideal))
    return found / best if best else 0.0


def significance(scores: Mapping[str, float], baseline: Mapping[str, float]) -> dict[str, float]:
    """Values of p of both tests; 1 where no query differs."""
    differences = np.array([scores[name] - baseline[name] for name in baseline])
    if not differences.any():
        return {"p_t_test": 1.0, "p_randomisation": 1.0}
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (DRAWS, len(differences)))
    as_large = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12
    p = stats.ttest_1samp(differences, 0.0).pvalue
    return {"p_t_test": float(p), "p_randomisation": (1 + int(as_large.sum())) / (1 + DRAWS)}
