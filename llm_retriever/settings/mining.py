"""Settings of mine_negatives."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from llm_retriever.settings.common import Seed


@dataclasses.dataclass(frozen=True)
class MiningSettings:
    """`mine_negatives`: hard negatives for the training queries, and BM25 runs for the evaluation splits."""

    depth: Annotated[int, Field(ge=1, le=10_000, description="Candidates taken per training query.")] = 200
    negatives: Annotated[
        int, Field(ge=1, le=10_000, description="Hard negatives kept per query, drawn from the candidates by the seed.")
    ] = 30
    rank_floor: Annotated[
        int, Field(ge=0, description="Leave out the first so many candidates: the top ranks hold unlabelled positives.")
    ] = 0
    score_ceiling: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Leave out candidates that score above this share of the best positive's score; 0 = off.",
        ),
    ] = 0.0
    bm25_k1: Annotated[float, Field(ge=0, description="BM25 term saturation.")] = 0.9
    bm25_b: Annotated[float, Field(ge=0, le=1, description="BM25 length normalisation.")] = 0.4
    evaluation_depth: Annotated[
        int, Field(ge=1, le=10_000, description="Passages per evaluation query in the BM25 run.")
    ] = 1000
    threads: Annotated[int, Field(ge=0, description="Search threads; 0 = one per processor.")] = 0
    seed: Seed = 17
