"""Tevatron JSON lines, both generations.

v1: {query_id, query, positive_passages: [{docid, title, text}], negative_passages: […]}, passages inside.
v2: {query_id, query_text, positive_document_ids: […], negative_document_ids: […]} beside a corpus {docid, title, text}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.reading import records
from llm_retriever.data.sources.rows import (
    PASSAGE_IDS,
    JudgmentRow,
    PassageRow,
    Place,
    QueryRow,
    Row,
    checked_id,
    id_field,
    identifier,
    passage_row,
    text_of,
)
from llm_retriever.data.sources.source_files import source_file
from llm_retriever.data.sources.training_files import files_with_records, first_record, is_corpus, split_of
from llm_retriever.errors import InputError

POSITIVES = ("positive_passages", "positive_document_ids")
NEGATIVES = ("negative_passages", "negative_document_ids")
QUERY_FIELDS = ("query_id", "query", "query_text", *POSITIVES, *NEGATIVES)
PASSAGE_FIELDS = ("title", "text", "document_text")


class TevatronDirectory:
    """A directory of Tevatron files: training and evaluation queries by split, and a corpus where there is one."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown
        paths = files_with_records(directory)
        self.corpus = [path for path in paths if is_corpus(path, directory)]
        self.queries = [path for path in paths if path not in self.corpus]
        self.repeats = True

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether the first record of a file has Tevatron's positives."""
        paths = [path for path in files_with_records(directory) if not is_corpus(path, directory)]
        return any(field in first_record(path) for path in paths[:3] for field in POSITIVES)

    def rows(self, bad: BadLines) -> Iterator[Row]:
        """Yields the rows of every query line together, then the corpus."""
        if not self.queries:
            hint = "a Tevatron source has queries with positives, one JSON object a line"
            raise InputError("no such file", file=f"{self.shown}/train.jsonl", hint=hint)
        for path in self.queries:
            split = split_of(path, self.directory)
            for place, record in records(source_file(path, self.directory, self.shown), bad):
                bad.note_fields(record, QUERY_FIELDS)
                with bad.tolerated(record, kind="query", row_id=record.get("query_id")):
                    yield from _example(record, split, place)
        for path in self.corpus:
            for place, record in records(source_file(path, self.directory, self.shown), bad):
                field = id_field(record, PASSAGE_IDS)
                bad.note_fields(record, (field, *PASSAGE_FIELDS))
                with bad.tolerated(record, kind="passage", row_id=record.get(field)):
                    yield _passage(record, place, may_repeat=False)


def _example(record: dict[str, Any], split: str, place: Place) -> list[Row]:
    """Returns all rows of a line, or none of them where one is unusable."""
    query_id = identifier(record, "query_id", place)
    query = text_of(record, "query_text" if "query_text" in record else "query", place)
    rows: list[Row] = [QueryRow(place, query_id, query, True)]
    passages, positives = _passages(record, place), _positive_ids(record, place)
    if split == "train" and not positives:
        field = next((name for name in POSITIVES if name in record), POSITIVES[0])
        hint = "give it a positive, or remove the line"
        raise place.error("the query has no positive passage", field=field, hint=hint)
    rows += passages
    rows += [JudgmentRow(place, split, query_id, passage, 1) for passage in positives]
    return rows


def _passages(record: dict[str, Any], place: Place) -> list[PassageRow]:
    fields = [name for name in (POSITIVES[0], NEGATIVES[0]) if record.get(name) is not None]
    return [
        _passage(_object(entry, name, place), place, True) for name in fields for entry in _list(record, name, place)
    ]


def _positive_ids(record: dict[str, Any], place: Place) -> list[str]:
    entries = (_object(entry, POSITIVES[0], place) for entry in _list(record, POSITIVES[0], place))
    inside = [_passage(entry, place, may_repeat=True).id for entry in entries]
    beside = [identifier({POSITIVES[1]: value}, POSITIVES[1], place) for value in _list(record, POSITIVES[1], place)]
    return [checked_id(value, POSITIVES[1], place) for value in dict.fromkeys(inside + beside)]


def _passage(record: dict[str, Any], place: Place, may_repeat: bool) -> PassageRow:
    field = "document_text" if "document_text" in record and "text" not in record else "text"
    return passage_row(record, place, text_field=field, may_repeat=may_repeat)


def _list(record: dict[str, Any], field: str, place: Place) -> list[Any]:
    value = record.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise place.error(f"must be a list, not {type(value).__name__}", field=field, hint="correct it")
    return value


def _object(entry: Any, field: str, place: Place) -> dict[str, Any]:
    if not isinstance(entry, dict):
        problem = f"must hold objects, not {type(entry).__name__}"
        raise place.error(problem, field=field, hint="write {docid, title, text}")
    return entry
