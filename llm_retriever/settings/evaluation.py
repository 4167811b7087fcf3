"""Settings of the steps that judge: evaluate, compare and promote."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from llm_retriever.settings.common import UNSET_NUMBER, Precision


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """`evaluate`: search, metrics, baselines, report."""

    splits: Annotated[
        str, Field(description="Query splits to evaluate, separated by commas; empty = all but train.")
    ] = ""
    depth: Annotated[int, Field(ge=1, le=10_000, description="Passages searched per query.")] = 1000
    measures: Annotated[
        str, Field(min_length=1, description="Metrics, separated by commas: mrr@K, ndcg@K, recall@K, map.")
    ] = "mrr@10,ndcg@10,recall@100,recall@1000"
    primary_metric: Annotated[
        str, Field(min_length=1, description="The metric that significance tests and promotion look at.")
    ] = "ndcg@10"
    relevance_level: Annotated[
        int, Field(ge=1, description="Grade from which a judgment counts as relevant in metrics that are not graded.")
    ] = 1
    query_length: Annotated[
        int, Field(ge=-1, description="Tokens of a query, prompt included; -1 = as in training.")
    ] = UNSET_NUMBER
    untuned_passages: Annotated[
        int,
        Field(
            ge=0,
            description="Corpora up to this size are also encoded by the un-tuned backbone, as a baseline; 0 = never.",
        ),
    ] = 100_000
    precision: Precision = "auto"


@dataclasses.dataclass(frozen=True)
class PromotionSettings:
    """`promote`: when a new retriever replaces the one in production, and where it is published."""

    uri: Annotated[
        str, Field(description="Directory or s3:// prefix of published versions; empty = decide, publish nothing.")
    ] = ""
    split: Annotated[str, Field(description="Split that decides; empty = the first one evaluated.")] = ""
    metric: Annotated[str, Field(min_length=1, description="Metric that decides.")] = "ndcg@10"
    minimum_gain: Annotated[
        float, Field(ge=-1, le=1, description="Required difference to the version in production.")
    ] = 0.0
    minimum_value: Annotated[
        float, Field(ge=0, le=1, description="Required value, also for the very first version.")
    ] = 0.0


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """`compare`: several evaluations side by side, tested against one of them and against each other."""

    reference: Annotated[
        str,
        Field(
            description="Name of the variant that BM25, the un-tuned backbone and all other variants are tested against; "
            "empty = the first one."
        ),
    ] = ""
    variants: Annotated[
        str,
        Field(
            description="JSON object with the description of each variant by its name, in the order of the tables; empty = "
            "the names and the order of the evaluations, without descriptions."
        ),
    ] = ""
