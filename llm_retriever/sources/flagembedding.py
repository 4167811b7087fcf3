"""FlagEmbedding JSON lines: {query, pos: [text], neg: [text]}, without ids.

Ids are made of the content, so that the same text has the same id in every line and every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.sources.reading import BadLines, records
from llm_retriever.sources.rows import JudgmentRow, PassageRow, Place, QueryRow, Row, checked_text, text_of
from llm_retriever.sources.training_files import files_with_records, first_record, source_file, split_of

ID_BYTES = 10


class FlagEmbeddingDirectory:
    """A directory of FlagEmbedding files; a file's name tells its split, else it is for training."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether the first record of a file has FlagEmbedding's fields."""
        return any({"query", "pos"} <= set(first_record(path)) for path in files_with_records(directory)[:3])

    def rows(self, bad: BadLines) -> Iterator[Row]:
        """The rows of every line together."""
        found = files_with_records(self.directory)
        if not found:
            mend = "a FlagEmbedding source has {query, pos, neg}, one JSON object a line"
            raise InputError("no such file", file=f"{self.shown}/train.jsonl", mend=mend)
        for path in found:
            split = split_of(path, self.directory)
            for place, record in records(source_file(path, self.directory, self.shown), bad):
                with bad.tolerated(record):
                    yield from _example(record, split, place)


def _example(record: dict[str, Any], split: str, place: Place) -> list[Row]:
    """All rows of a line, or none of them where one is unusable."""
    query = text_of(record, "query", place)
    query_id = _id("q", query)
    positives, negatives = _texts(record, "pos", place), _texts(record, "neg", place)
    if not positives:
        mend = "give it a positive, or remove the line"
        raise InputError("the query has no positive passage", file=place.file, line=place.line, field="pos", mend=mend)
    rows: list[Row] = [QueryRow(place, query_id, query, True)]
    rows += [PassageRow(place, _id("p", text), "", text, True) for text in positives + negatives]
    rows += [JudgmentRow(place, split, query_id, _id("p", text), 1) for text in positives]
    return rows


def _texts(record: dict[str, Any], field: str, place: Place) -> list[str]:
    values = record.get(field)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        problem = "must be a list of texts"
        raise InputError(problem, file=place.file, line=place.line, field=field, mend="write [text, …]")
    return list(dict.fromkeys(checked_text(value, field, place) for value in values))


def _id(kind: str, text: str) -> str:
    return kind + hashlib.blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()
