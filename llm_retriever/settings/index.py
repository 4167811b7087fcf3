"""Settings of build_index, and of encode_corpus, which encodes a part of the corpus on a machine of its own."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.settings.common import IN_FORM, OF_POD, OF_STEP, UNSET_NUMBER, Gpus

IndexKind = Literal["flat", "hnsw", "ivf-pq", "sq8", "fp16"]
VectorType = Literal["fp32", "fp16", "int8"]
EncodingPrecision = Annotated[
    Literal["auto", "bf16", "fp16", "fp32"],
    Field(description="Arithmetic; auto = bf16 where the processor or GPU computes it natively, else fp32."),
]
EncodingProcesses = Annotated[
    int, Field(ge=0, le=64, description="Encoding processes in this pod; 0 = one per GPU, at least one."), OF_POD
]


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """How passages become shards of vectors; what `build_index` and `encode_corpus` share."""

    passage_length: Annotated[
        int,
        Field(
            ge=-1,
            description="Tokens of a passage, prompt included; -1 = as in training. Echo reads a text twice and takes twice "
            "as many.",
        ),
    ] = UNSET_NUMBER
    batch_tokens: Annotated[
        int,
        Field(ge=1, description="Tokens (padding included) that go through the model at once."),
    ] = 16_384
    shard_passages: Annotated[
        int,
        Field(
            ge=1,
            description="Passages per shard; shards are what processes and parts share out and where a killed run resumes.",
        ),
    ] = 131_072
    dtype: Annotated[VectorType, Field(description="Stored precision of the vectors."), IN_FORM] = "fp32"
    dimension: Annotated[int, Field(ge=0, description="First numbers of a vector that are kept; 0 = all.")] = 0
    precision: EncodingPrecision = "auto"
    gpus: Gpus = ""
    processes: EncodingProcesses = 0
    shards_uri: Annotated[
        str,
        Field(
            description="Directory or s3:// prefix that the shards go straight to, under a name made of what decides them; "
            "the index then names them there. Empty = the shards are part of the index."
        ),
        IN_FORM,
    ] = ""


@dataclasses.dataclass(frozen=True)
class PartSettings(EncodingSettings):
    """`encode_corpus`: which part of the corpus becomes vectors, and where they go."""

    part: Annotated[
        int, Field(ge=0, description="Number of the part, from 0; it takes every parts-th shard."), OF_STEP
    ] = 0
    parts: Annotated[
        int,
        Field(
            ge=1,
            le=200,
            description="Pods that encode the corpus at the same time; more than one needs a shards_uri.",
        ),
        OF_STEP,
    ] = 1


@dataclasses.dataclass(frozen=True)
class IndexSettings(EncodingSettings):
    """`build_index`: how the corpus becomes vectors, and the vectors an index."""

    kind: Annotated[
        IndexKind,
        Field(
            description="flat = exact; hnsw = graph; ivf-pq = inverted lists of product codes; sq8, fp16 = scalar "
            "quantisation to 1 or 2 bytes a number."
        ),
        IN_FORM,
    ] = "flat"
    hnsw_m: Annotated[int, Field(ge=2, le=512, description="hnsw: neighbours of a passage in the graph.")] = 32
    hnsw_ef_construction: Annotated[
        int, Field(ge=1, description="hnsw: candidates that are looked at to place a passage.")
    ] = 200
    hnsw_ef_search: Annotated[int, Field(ge=1, description="hnsw: candidates that a search keeps, at least.")] = 128
    hnsw_threads: Annotated[
        int,
        Field(
            ge=0,
            description="hnsw: threads that build; 0 = all. With more than one the graph differs from run to run.",
        ),
    ] = 1
    ivf_lists: Annotated[int, Field(ge=-1, description="ivf-pq: lists; -1 = by the number of passages.")] = UNSET_NUMBER
    ivf_probes: Annotated[
        int, Field(ge=-1, description="ivf-pq: lists that a search looks into; -1 = a sixteenth, at least 8.")
    ] = UNSET_NUMBER
    pq_bytes: Annotated[
        int, Field(ge=-1, description="ivf-pq: bytes of a passage; divides the dimension; -1 = about dimension / 8.")
    ] = UNSET_NUMBER
    train_sample: Annotated[
        int, Field(ge=-1, description="ivf-pq, sq8: passages to train on; -1 = by the number of lists.")
    ] = UNSET_NUMBER
    refine: Annotated[
        int,
        Field(
            ge=-1,
            description="Candidates per wanted passage that are scored again from the exact vectors; 0 = none; "
            "-1 = by the kind.",
        ),
    ] = UNSET_NUMBER
    memory_gib: Annotated[
        float, Field(ge=0, description="GiB that building and searching the index may take; 0 = no limit."), OF_POD
    ] = 0.0
