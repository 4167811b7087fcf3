"""Checks `evaluation.json` for the steps that decide or compare by it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.metrics.conventions import RETRIEVER

HINT = "evaluate again"
CHECKSUM = "checksum"
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]
Text = Annotated[str, Field(strict=True)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]
Values = dict[Text, Number]


class _Comparison(TypedDict):
    baseline: Text
    metric: Text
    queries: Count
    mean_difference: Number
    interval: Pair | None
    t_test: Number
    t_test_hommel: NotRequired[Number]


class _Split(TypedDict):
    queries: Count
    systems: dict[Text, Values]
    collection: NotRequired[Text]
    judgments: NotRequired[Count]
    relevance_level: NotRequired[Annotated[int, Field(strict=True)]]
    comparisons: NotRequired[list[_Comparison]]
    hybrid_comparisons: NotRequired[list[_Comparison]]
    per_query: NotRequired[dict[Text, Values]]
    notes: NotRequired[list[Text]]


class _Training(TypedDict):
    stage: Text
    seconds: Number
    examples: Count


class _Costs(TypedDict):
    training: NotRequired[list[_Training]]
    index_seconds: NotRequired[Number]
    index_bytes: NotRequired[Number]
    passages_per_second: NotRequired[Number]
    query_encoding_ms: NotRequired[Number]
    query_search_ms: NotRequired[Number]


class _Efficiency(TypedDict):
    bytes_per_passage: NotRequired[Number]
    training_process_hours: NotRequired[Number]
    batch_size: NotRequired[Number]
    tokens_per_second: NotRequired[Number]
    padding_share: NotRequired[Number]
    peak_memory_bytes: NotRequired[Number]
    parameters: NotRequired[Number]


class _Stage(TypedDict):
    stage: Text


def _none_or_two(layers: list[int]) -> list[int]:
    if len(layers) not in (0, 2):
        raise ValueError("must be empty, or how many layers were kept and how many there were")
    return layers


class _Lineage(TypedDict):
    source: Text
    stages: list[_Stage]
    layers: NotRequired[Annotated[list[Count], AfterValidator(_none_or_two)]]


class _Collection(TypedDict):
    splits: list[Text]


class _ZeroShot(TypedDict):
    collections: dict[Text, _Collection]


class _Production(TypedDict):
    version: NotRequired[Text]
    encoded: NotRequired[Count]
    reused: NotRequired[Count]
    trained_on: NotRequired[dict[Text, Count] | None]


class _Hybrid(TypedDict):
    fusion: Text
    weight: Number | None
    chosen_on: Text | None
    curve: list[Pair]


class _Content(TypedDict):
    splits: dict[Text, _Split]
    format: NotRequired[int]
    collection: NotRequired[Text]
    card: NotRequired[Text]
    measures: NotRequired[Annotated[list[Text], Field(min_length=1)]]
    primary_metric: NotRequired[Text]
    depth: NotRequired[Count]
    method: NotRequired[Text]
    recipe: NotRequired[Text]
    corpus: NotRequired[Text]
    costs: NotRequired[_Costs]
    lineage: NotRequired[_Lineage]
    notes: NotRequired[list[Text]]
    hybrid: NotRequired[_Hybrid]
    zero_shot: NotRequired[_ZeroShot]
    production: NotRequired[_Production | None]
    versions: NotRequired[dict[Text, Text]]
    efficiency: NotRequired[_Efficiency]


_CHECKED = TypeAdapter(_Content)


def check_content(content: Any, file: Path | str, needed: Iterable[str] = ()) -> None:
    """Raises InputError for what is no evaluation, or contradicts itself.

    Args:
        content: As it was read.
        file: Its `evaluation.json`.
        needed: Parts that the step cannot do without.

    Raises:
        InputError: It names the part that is missing, of another type or not finite, or the file was changed.
    """
    files.checked(_CHECKED, content, file, hint=HINT)
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    if content.get(CHECKSUM) != files.digest(rest):
        problem = "was changed since it was written" if CHECKSUM in content else "is missing"
        raise InputError(problem, file=file, field=CHECKSUM, hint=HINT)
    for name in needed:
        if name not in content:
            raise InputError("is missing", file=file, field=name, hint=HINT)
    for name, split in content["splits"].items():
        _check_split(name, split, content, file)
    for name, collection in (content.get("zero_shot") or {}).get("collections", {}).items():
        if not collection["splits"] or any(split not in content["splits"] for split in collection["splits"]):
            raise InputError("names splits that are not there", file=file, field=f"zero_shot.{name}", hint=HINT)


def _check_split(name: str, split: Any, content: Any, file: Path | str) -> None:
    """Raises InputError for a split whose systems were not all measured alike, on the same queries."""
    for system, values in split["systems"].items():
        for measure in content.get("measures", ()):
            if measure not in values:
                field = f"splits.{name}.systems.{system}"
                raise InputError(f"has no {measure}", file=file, field=field, hint=HINT)
    asked = split.get("per_query", {}).get(RETRIEVER, {}).keys()
    for system, values in split.get("per_query", {}).items():
        field = f"splits.{name}.per_query.{system}"
        if not values or values.keys() != asked:
            raise InputError("its queries are not those of the retriever", file=file, field=field, hint=HINT)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Adds the content's own digest, by which a change of any figure in the file is noticed."""
    bare = {name: value for name, value in content.items() if name != CHECKSUM}
    return {**bare, CHECKSUM: files.digest(bare)}
