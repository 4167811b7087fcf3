"""Settings of the steps that judge: evaluate and compare."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.settings.common import IN_FORM, OF_STEP, UNSET_NUMBER, UNSET_OR_NOT_NEGATIVE, Gpus, Precision


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """`evaluate`: search, metrics, baselines, report."""

    splits: Annotated[
        str, Field(description="Query splits to evaluate, separated by commas; empty = all but train."), IN_FORM
    ] = ""
    depth: Annotated[int, Field(ge=1, le=10_000, description="Passages searched per query."), IN_FORM] = 1000
    measures: Annotated[
        str,
        Field(
            min_length=1,
            description="Metrics, separated by commas: mrr@K, ndcg@K, recall@K, precision@K, success@K, map, rprec, with a "
            "relevance level of their own as in recall(rel=2)@1000; or msmarco-passage, msmarco-document, trec-dl, beir.",
        ),
        IN_FORM,
    ] = "mrr@10,ndcg@10,recall@100,recall@1000"
    primary_metric: Annotated[
        str, Field(min_length=1, description="The metric that significance tests and promotion look at.")
    ] = "ndcg@10"
    relevance_level: Annotated[
        int, Field(ge=1, description="Grade from which a judgment counts as relevant in metrics that are not graded.")
    ] = 1
    query_length: Annotated[
        int,
        Field(
            ge=-1,
            description="Tokens of a query, prompt included; -1 = as in training. Echo reads a text twice and takes twice as "
            "many.",
        ),
    ] = UNSET_NUMBER
    hybrid_fusion: Annotated[
        Literal["convex", "rrf", "auto"],
        Field(
            description="How retriever and BM25 are fused: mixed scores, reciprocal ranks, or what is better on dev."
        ),
    ] = "convex"
    hybrid_weight: Annotated[
        float,
        Field(ge=-1, le=1, description="Weight of the retriever in mixed scores; -1 = the best on dev."),
        UNSET_OR_NOT_NEGATIVE,
    ] = UNSET_NUMBER
    untuned_passages: Annotated[
        int,
        Field(
            ge=0,
            description="Passages that the un-tuned backbone encodes as a baseline; of a larger corpus the judged ones and "
            "random others, so that its figures are upper bounds; 0 = never.",
        ),
    ] = 100_000
    encoders: Annotated[
        str,
        Field(
            description="Published encoders to compare with, separated by commas: ROW, ROW@COMMIT or ROW=PLACE of the table of "
            "encoders (with ';' between several COMMITs or PLACEs), or the directory or s3:// prefix of a retriever, [NAME=] in "
            "front; they encode the corpus anew."
        ),
    ] = ""
    encoder_passages: Annotated[
        int, Field(ge=0, description="Larger corpora are not encoded by the encoders to compare with.")
    ] = 1_000_000
    runs: Annotated[
        str,
        Field(
            description="Runs of other systems in the TREC format, NAME=FILE separated by commas; {split} in FILE stands for "
            "the split, also a zero-shot one; s3://bucket/key is possible."
        ),
    ] = ""
    zero_shot: Annotated[
        str,
        Field(
            description="Further collections that the retriever was not trained on, [NAME=]URI[#SPLIT] separated by commas, "
            "URIs as of prepare_corpus; a directory of several collections counts as one, their mean, and so do several named "
            "NAME/PART. Without SPLIT test."
        ),
    ] = ""
    zero_shot_query_length: Annotated[
        int,
        Field(ge=-1, description="Tokens of a query of the zero-shot collections (512 in BEIR); -1 = as in training."),
    ] = 512
    zero_shot_passage_length: Annotated[
        int,
        Field(
            ge=-1, description="Tokens of a passage of the zero-shot collections (512 in BEIR); -1 = as in training."
        ),
    ] = 512
    zero_shot_max_bad_lines: Annotated[
        int,
        Field(
            ge=0,
            description="So many unusable lines of a zero-shot collection are left out instead of ending the step.",
        ),
    ] = 0
    precision: Precision = "auto"
    gpus: Gpus = ""
    production_uri: Annotated[
        str,
        Field(
            description="URI of a published version to compare with, as fingerprint_sources gives it: only passages that its "
            "index lacks are encoded; empty = none."
        ),
        OF_STEP,
    ] = ""
    production_shards_uri: Annotated[
        str,
        Field(
            description="Directory or s3:// prefix that the shards of that version's index of this corpus go straight to, and "
            "where a killed run resumes, as with build_index; empty = the shards are part of the output."
        ),
        OF_STEP,
    ] = ""
    rerank_depth: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="Passages per query that are also re-ranked by the likelihood of the query under a language model "
            "(LLM-QL, Table 8); 0 = none. Costs a forward pass a passage.",
        ),
    ] = 0
    rerank_from: Annotated[
        Literal["BM25", "retriever"], Field(description="Whose passages are re-ranked: BM25's or the retriever's.")
    ] = "BM25"
    rerank_model: Annotated[
        Literal["adapted", "tuned"],
        Field(description="The language model: the backbone after stage one, or the tuned retriever's merged model."),
    ] = "adapted"
    rerank_attention_block: Annotated[
        Literal["on", "off", "both"],
        Field(description="Whether the query sees the passage through the embedding token alone; both = two systems."),
    ] = "both"
    rerank_interpolation: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="Weight of the first stage's score, 0 to 1, mixed with the likelihood after both were stretched to "
            "[0, 1] per query (0.2 in llm-qlm); -1 = the likelihood alone.",
        ),
    ] = UNSET_NUMBER
    rerank_end_of_sequence: Annotated[
        bool, Field(description="Whether the end-of-sequence token behind the query counts too, as in training.")
    ] = True
    attention_queries: Annotated[
        int,
        Field(
            ge=0,
            description="Queries of the first split, with their relevant passages, on which the report shows where attention "
            "goes before and after stage one (LLM-QL, Figure 3), where stage one was ql; 0 = none.",
        ),
    ] = 0


@dataclasses.dataclass(frozen=True)
class CompareSettings:
    """`compare`: several evaluations side by side, tested against one of them and against each other."""

    reference: Annotated[
        str,
        Field(
            description="Name of the variant that BM25, the un-tuned backbone and all other variants are tested against; "
            "empty = the first one."
        ),
        IN_FORM,
    ] = ""
    variants: Annotated[
        str,
        Field(
            description="JSON object with the description of each variant by its name, in the order of the tables; empty = "
            "the names and the order of the evaluations, without descriptions."
        ),
        OF_STEP,
    ] = ""
