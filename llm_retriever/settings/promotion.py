"""Settings of promote."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from llm_retriever.settings.common import IN_FORM, OF_STEP


@dataclasses.dataclass(frozen=True)
class PromotionSettings:
    """`promote`: when a new retriever replaces the one in production, and where it is published."""

    uri: Annotated[
        str,
        Field(description="Directory or s3:// prefix of published versions; empty = decide, publish nothing."),
        IN_FORM,
    ] = ""
    split: Annotated[str, Field(description="Split that decides; empty = the first that nothing was chosen on.")] = ""
    metric: Annotated[str, Field(min_length=1, description="Metric that decides.")] = "ndcg@10"
    system: Annotated[
        Literal["retriever", "hybrid"], Field(description="Whose values decide: the retriever's, or hybrid search's.")
    ] = "retriever"
    minimum_gain: Annotated[
        float,
        Field(
            ge=-1,
            le=1,
            description="Required difference to the version in production. Where both were measured on the same queries by the "
            "same run, the new one must be better in any case.",
        ),
    ] = 0.0
    minimum_value: Annotated[
        float, Field(ge=0, le=1, description="Required value, also for the very first version.")
    ] = 0.0
    first: Annotated[
        Literal["significant", "any"],
        Field(
            description="A first version: significantly better than its un-tuned backbone, and it or its hybrid than BM25; "
            "or any."
        ),
    ] = "significant"
    guards: Annotated[
        str,
        Field(
            description="Splits, separated by commas, on which the new retriever must not be significantly worse than the one "
            "in production; empty = all evaluated."
        ),
    ] = ""
    significance: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="A guard split speaks against the new retriever where it is worse and p of the paired t-test is below "
            "this.",
        ),
    ] = 0.05
    refresh: Annotated[
        bool,
        Field(
            description="Whether a retriever that stays in production is published with an index of the new corpus, as a version "
            "of its own; only where source_fingerprint is set."
        ),
    ] = True
    source_fingerprint: Annotated[
        str,
        Field(
            description="What fingerprint_sources saw; is written down beside the versions, so that the next retraining knows "
            "that it was judged. Empty = this is no retraining: nothing is written down, and nothing refreshed."
        ),
        OF_STEP,
    ] = ""
