"""Settings of mine_negatives."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.methods.overrides import UNSET_TEXT
from llm_retriever.settings.common import (
    IN_FORM,
    OF_POD,
    UNSET_NUMBER,
    UNSET_OR_NOT_NEGATIVE,
    Gpus,
    Precision,
    Seed,
)
from llm_retriever.settings.index import EncodingProcesses

Language = Literal["auto", "ar", "bn", "da", "de", "en", "es", "fi", "fr", "hi", "hu", "id", "it", "ja", "ko", "nl", "no", "pt", "ru", "te", "th", "tr", "zh"]  # fmt: skip  # noqa: E501


@dataclasses.dataclass(frozen=True)
class MiningSettings:
    """`mine_negatives`: hard negatives for the training queries, and sparse runs for the evaluation splits.

    A second round of mining gives `encoder` the retriever that the first round trained: its own mistakes become the
    negatives of the next training (ANCE, Xiong et al. 2021; coCondenser's second stage).
    """

    depth: Annotated[
        int, Field(ge=1, le=10_000, description="Candidates taken per training query and source."), IN_FORM
    ] = 200
    negatives: Annotated[
        int,
        Field(ge=1, le=10_000, description="Hard negatives kept per query, drawn from the candidates by the seed."),
        IN_FORM,
    ] = 30
    sources: Annotated[
        str,
        Field(
            description="Who finds candidates, with quotas if wanted: bm25:15,dense:15, or dense alone; teacher = what the "
            "source has scores of. What the quotas "
            "leave open is drawn evenly from the union. Empty = BM25, and the encoder where one is given, evenly."
        ),
    ] = UNSET_TEXT
    rank_floor: Annotated[
        int,
        Field(
            ge=0,
            description="Leave out the first so many candidates of each source: the top ranks hold unlabelled positives.",
        ),
    ] = 0
    score_ceiling: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Leave out candidates that score above this share of the best positive's score in the same "
            "source; 0 = off.",
        ),
    ] = 0.0
    near_duplicate: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Leave out passages whose word 3-grams have at least this Jaccard similarity with a positive's; "
            "0 = only those of the same text.",
        ),
    ] = 0.9
    random_top_up: Annotated[
        bool, Field(description="Fill up with random passages where fewer negatives are left than wanted.")
    ] = False
    bm25: Annotated[
        Literal["default", "msmarco-tuned"],
        Field(description="BM25's parameters: k1 0.9, b 0.4, or k1 0.82, b 0.68 as tuned on MS MARCO passages."),
    ] = "default"
    bm25_k1: Annotated[
        float, Field(ge=-1, description="BM25 term saturation; -1 = that of `bm25`."), UNSET_OR_NOT_NEGATIVE
    ] = UNSET_NUMBER
    bm25_b: Annotated[
        float, Field(ge=-1, le=1, description="BM25 length normalisation; -1 = that of `bm25`."), UNSET_OR_NOT_NEGATIVE
    ] = UNSET_NUMBER
    bm25_language: Annotated[
        Language, Field(description="Whose words BM25 parts, stems and leaves out; auto = by the script of the corpus.")
    ] = "auto"
    bm25_tune_split: Annotated[
        str,
        Field(
            description="Try a grid of k1 and b on this split and take the best; train leaves the evaluation splits "
            "unseen, and BM25 looks better than it is on any other split that it was tuned on. Empty = off."
        ),
    ] = UNSET_TEXT
    bm25_tune_metric: Annotated[Literal["mrr@10", "ndcg@10"], Field(description="What the grid is judged by.")] = (
        "mrr@10"
    )
    bm25_tune_queries: Annotated[
        int, Field(ge=0, description="Queries of the split that the grid is tried on, drawn by the seed; 0 = all.")
    ] = 500
    baselines: Annotated[
        str,
        Field(
            description="Further runs beside BM25's, separated by commas: qld (query likelihood, Dirichlet smoothing, "
            "mu 1000), qljm (Jelinek-Mercer smoothing, lambda 0.1); another value as in qld:2500."
        ),
    ] = UNSET_TEXT
    evaluation_depth: Annotated[
        int, Field(ge=1, le=10_000, description="Passages per evaluation query in the sparse runs.")
    ] = 1000
    encoder: Annotated[
        str,
        Field(
            description="Dense encoder to mine with beside BM25: a published one by its name, NAME=PATH_OR_URI for its "
            "files, or a path or s3:// URI of a retriever made here. Empty = none."
        ),
        IN_FORM,
    ] = UNSET_TEXT
    encoder_dtype: Annotated[
        Literal["fp32", "fp16"], Field(description="Stored precision of the encoder's passage vectors.")
    ] = "fp32"
    encoder_batch_tokens: Annotated[
        int,
        Field(ge=1, description="Tokens (padding included) that go through the encoder at once."),
    ] = 16_384
    encoder_shards_uri: Annotated[
        str,
        Field(
            description="Directory or s3:// prefix that the encoder's vectors go straight to and stay at, so that a killed "
            "run resumes on another machine. Empty = beside the training set, until it is complete."
        ),
        OF_POD,
    ] = UNSET_TEXT
    gpus: Gpus = ""
    processes: EncodingProcesses = 0
    precision: Precision = "auto"
    threads: Annotated[int, Field(ge=0, description="Lucene's threads; 0 = one per processor."), OF_POD] = 0
    seed: Seed = 17
