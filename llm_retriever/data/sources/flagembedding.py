"""FlagEmbedding JSON lines: {query, pos: [text], neg: [text]}, without ids.

Ids are made of the content. `pos_scores` and `neg_scores`, one number a text, are kept as a teacher's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.examples import Example, example_rows, scores_of, texts_of
from llm_retriever.data.sources.reading import records
from llm_retriever.data.sources.rows import Place, Row
from llm_retriever.data.sources.source_files import source_file
from llm_retriever.data.sources.training_files import files_with_records, first_record, split_of
from llm_retriever.errors import InputError

FIELDS = ("query", "pos", "neg", "pos_scores", "neg_scores")


class FlagEmbeddingDirectory:
    """A directory of FlagEmbedding files; a file's name tells its split, else it is for training."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether the first record of a file has FlagEmbedding's fields."""
        return any({"query", "pos"} <= set(first_record(path)) for path in files_with_records(directory)[:3])

    def rows(self, bad: BadLines) -> Iterator[Row]:
        """Yields the rows of every line together."""
        paths = files_with_records(self.directory)
        if not paths:
            hint = "a FlagEmbedding source has {query, pos, neg}, one JSON object a line"
            raise InputError("no such file", file=f"{self.shown}/train.jsonl", hint=hint)
        for path in paths:
            split = split_of(path, self.directory)
            for place, record in records(source_file(path, self.directory, self.shown), bad):
                bad.note_fields(record, FIELDS)
                with bad.tolerated(record):
                    yield from example_rows(_example(record, place), split, place)


def _example(record: dict[str, Any], place: Place) -> Example:
    positives, negatives = (texts_of(record.get(field), field, place) for field in ("pos", "neg"))
    return Example(
        query=record.get("query"),
        positives=positives,
        negatives=negatives,
        positive_scores=scores_of(record.get("pos_scores"), len(positives), "pos_scores", place),
        negative_scores=scores_of(record.get("neg_scores"), len(negatives), "neg_scores", place),
        fields=("query", "pos", "neg"),
    )
