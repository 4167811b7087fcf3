"""Settings of build_index."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.settings.common import UNSET_NUMBER, Precision


@dataclasses.dataclass(frozen=True)
class IndexSettings:
    """`build_index`: how the corpus becomes vectors."""

    passage_length: Annotated[
        int, Field(ge=-1, description="Tokens of a passage, prompt included; -1 = as in training.")
    ] = UNSET_NUMBER
    batch_tokens: Annotated[
        int, Field(ge=1, description="Tokens (padding included) that go through the model at once.")
    ] = 16_384
    shard_passages: Annotated[int, Field(ge=1, description="Passages per shard; a killed run resumes at a shard.")] = (
        500_000
    )
    dtype: Annotated[Literal["fp32", "fp16"], Field(description="Stored precision of the vectors.")] = "fp32"
    precision: Precision = "auto"
