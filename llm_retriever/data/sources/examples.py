"""Reads training examples that hold texts instead of ids: a query, positives, negatives, and perhaps a teacher's scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llm_retriever.data.sources.rows import (
    JudgmentRow,
    PassageRow,
    Place,
    QueryRow,
    Row,
    TeacherRow,
    checked_text,
    content_id,
    text_of,
)


@dataclass(frozen=True)
class Example:
    """One example as it was read, not yet normalised.

    Attributes:
        query: Its text.
        positives, negatives: Texts of passages.
        positive_scores, negative_scores: A teacher's, one for each of them; () = there are none.
        fields: What query, positives and negatives are called there, for messages.
    """

    query: Any
    positives: Sequence[str]
    negatives: Sequence[str]
    positive_scores: Sequence[float] = ()
    negative_scores: Sequence[float] = ()
    fields: tuple[str, str, str] = ("query", "positive", "negative")


def example_rows(example: Example, split: str, place: Place) -> list[Row]:
    """Returns all rows of an example, or none where one is unusable; ids are made of the content.

    Raises:
        InputError: A text is none, there is no positive, or a text is positive and negative.
    """
    query_field, positive_field, negative_field = example.fields
    query = text_of({query_field: example.query}, query_field, place)
    query_id = content_id("q", query)
    positives = [checked_text(text, positive_field, place) for text in example.positives]
    negatives = [checked_text(text, negative_field, place) for text in example.negatives]
    if not positives:
        raise place.error(
            "the query has no positive passage", field=positive_field, hint="give it a positive, or remove the line"
        )
    rows: list[Row] = [QueryRow(place, query_id, query, True)]
    rows += [PassageRow(place, content_id("p", t), "", t, True) for t in dict.fromkeys(positives + negatives)]
    rows += [JudgmentRow(place, split, query_id, content_id("p", text), 1) for text in dict.fromkeys(positives)]
    rows += _scored(query_id, positives, example.positive_scores, place)
    rows += _scored(query_id, negatives, example.negative_scores, place)
    return rows


def _scored(query_id: str, texts: Sequence[str], scores: Sequence[float], place: Place) -> Iterator[TeacherRow]:
    for text, score in zip(texts, scores, strict=False):
        yield TeacherRow(place, query_id, content_id("p", text), score)


def texts_of(value: Any, field: str, place: Place) -> list[str]:
    """Reads a list of texts, none where there is no value.

    Raises:
        InputError: It is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise place.error("must be a list of texts", field=field, hint="write [text, …]")
    return value


def scores_of(value: Any, number: int, field: str, place: Place) -> list[float]:
    """Reads a teacher's scores of so many texts, none where there is no value.

    Raises:
        InputError: They are not as many finite numbers.
    """
    if value is None or value == []:
        return []
    if not isinstance(value, list) or len(value) != number or not all(map(_is_score, value)):
        raise place.error(
            f"must be a list of {number} numbers, one a text",
            field=field,
            hint="correct the scores, or remove the field",
        )
    return [float(score) for score in value]


def _is_score(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
