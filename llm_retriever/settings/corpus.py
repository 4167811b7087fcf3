"""Settings of the steps that read sources: fingerprint_sources, prepare_corpus and fetch_backbone."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.settings.common import IN_FORM, OF_STEP, Precision, Seed, SourceFingerprint


@dataclasses.dataclass(frozen=True)
class FingerprintSettings:
    """`fingerprint_sources`: what the corpus and the backbone consist of right now, so that changes are noticed."""

    corpus_uri: Annotated[
        str, Field(min_length=1, description="Source of the collection, as for prepare_corpus."), OF_STEP
    ] = "demo:python-docs"
    backbone: Annotated[str, Field(min_length=1, description="The backbone, as for fetch_backbone."), OF_STEP] = (
        "scratch:small"
    )
    published_uri: Annotated[
        str,
        Field(description="Directory or s3:// prefix of published versions, as for promote; required with a recipe."),
        OF_STEP,
    ] = ""
    recipe: Annotated[
        str, Field(description="What else decides what a run makes, as text; another one counts as a change."), OF_STEP
    ] = ""


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """`prepare_corpus`: where the collection comes from and how it is cleaned."""

    uri: Annotated[
        str,
        Field(
            min_length=1,
            description="Source: a directory, s3://bucket/prefix, hf://datasets/OWNER/NAME[@REVISION], or demo:python-docs.",
        ),
        IN_FORM,
    ] = "demo:python-docs"
    format: Annotated[
        Literal["auto", "beir", "msmarco", "tevatron", "flagembedding", "triples"],
        Field(description="Layout of the source; auto = recognised from its file names."),
    ] = "auto"
    heldout_queries: Annotated[
        int,
        Field(
            ge=-1,
            description="So many training queries, at most a fifth, become split 'dev' where there is none to choose on (dev, "
            "validation, valid, heldout); 0 = none; -1 = 500, and only where there is nothing but train.",
        ),
    ] = -1
    deduplicate: Annotated[
        bool, Field(description="Merge passages whose normalised title and text are the same; their qrels move along.")
    ] = True
    max_bad_lines: Annotated[
        int,
        Field(ge=0, description="So many unusable lines are set aside in bad_lines.jsonl instead of ending the step."),
    ] = 0
    own_passages: Annotated[
        Literal["auto", "remove", "keep"],
        Field(
            description="Whether rankings leave out the passage that has the query's id, unless it is judged relevant; auto = "
            "where the texts say that the corpus holds its queries, as in ArguAna and Quora."
        ),
    ] = "auto"
    max_passages: Annotated[
        int, Field(ge=0, description="Keep the judged passages and fill up with others to this many; 0 = keep all.")
    ] = 0
    sample_seed: Annotated[
        int,
        Field(
            ge=0,
            description="Draws held-out queries and the passages of a subset; runs of any seed are measured on the same ones.",
        ),
    ] = 17
    source_fingerprint: SourceFingerprint = ""


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """`fetch_backbone`: which causal LM everything starts from."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            description="A directory, s3://bucket/prefix, a GGUF file, a Hugging Face model id, smollm2-135m, or "
            "scratch:tiny|small|medium = pre-trained on the collection itself.",
        ),
        IN_FORM,
    ] = "scratch:small"
    revision: Annotated[
        str,
        Field(description="Commit of the Hugging Face model; required for a model id, so that a run can be repeated."),
        IN_FORM,
    ] = ""
    layers: Annotated[int, Field(ge=0, description="Keep so many layers, the lower ones; 0 = all.")] = 0
    scratch_tokens: Annotated[
        int, Field(ge=0, description="scratch only: tokens to pre-train on (the collection is repeated as needed).")
    ] = 6_000_000
    scratch_vocabulary: Annotated[
        int, Field(ge=300, le=65_536, description="scratch only: size of the vocabulary.")
    ] = 8192
    precision: Precision = "auto"
    seed: Seed = 17
    source_fingerprint: SourceFingerprint = ""
