"""Reads examples of texts as sentence-transformers writes them, and MS MARCO's triples: query, positive, negatives.

- {anchor, positive, negative}, {query, answer}, {question, positive, negative_1, negative_2, …}: JSON, CSV or parquet; a field
  may hold a list of texts, and `scores` (a teacher's, of the positives, then the negatives) may stand beside them;
- [query, positive, negative, …], one JSON array a line, also as {"set": […]};
- `triples.<split>.tsv`: query, positive and negatives in columns, with or without a header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.examples import Example, example_rows, scores_of, texts_of
from llm_retriever.data.sources.reading import lines, values
from llm_retriever.data.sources.rows import Place, Row, plain
from llm_retriever.data.sources.source_files import SUFFIXES, source_file
from llm_retriever.data.sources.training_files import files_with_records, first_value, split_of
from llm_retriever.errors import InputError

QUERIES = ("anchor", "query", "question", "anchors", "queries")
POSITIVES = ("positive", "positives", "pos", "answer")
NEGATIVE = ("negative", "neg")
SCORES = ("scores", "score")
TABLES = (".tsv", ".tsv.gz")
HINT = "write for instance {anchor, positive, negative}, one JSON object a line"


class TriplesDirectory:
    """A directory of files of examples; a file's name tells its split, else it is for training."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether the first record of a file is an example, or there are tables of triples."""
        tables = [path for path in files_with_records(directory, TABLES) if "triples" in path.name]
        return bool(tables) or any(_is_example(first_value(path)) for path in files_with_records(directory)[:3])

    def rows(self, bad: BadLines) -> Iterator[Row]:
        """Yields the rows of every example together."""
        paths = files_with_records(self.directory, (*SUFFIXES, *TABLES))
        if not paths:
            raise InputError("no such file", file=f"{self.shown}/train.jsonl", hint=HINT)
        for path in paths:
            split, file = split_of(path, self.directory), source_file(path, self.directory, self.shown)
            read = _table(file, bad) if path.name.endswith(TABLES) else values(file, bad)
            for place, value in read:
                with bad.tolerated(value):
                    yield from example_rows(_example(value, place, bad), split, place)


def _is_example(value: Any) -> bool:
    if isinstance(value, dict) and "set" in value:
        value = value["set"]
    if isinstance(value, list):
        return len(value) > 1 and all(isinstance(text, str) for text in value)
    return isinstance(value, dict) and bool(_first(value, QUERIES) and _first(value, POSITIVES))


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    by_plain = {plain(name): name for name in reversed(list(record))}
    return next((by_plain[name] for name in names if name in by_plain), "")


def _example(value: Any, place: Place, bad: BadLines) -> Example:
    """Parses the example in a JSON value.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, dict) and isinstance(value.get("set"), list):
        bad.note_fields(value, ("set",))
        value = value["set"]
    if isinstance(value, list):
        texts = texts_of(value, "set", place)
        if len(texts) < 2:
            raise place.error(f"{len(texts)} texts are no example", hint=HINT)
        return Example(texts[0], texts[1:2], texts[2:])
    query = _first(value, QUERIES) if isinstance(value, dict) else ""
    positive = _first(value, POSITIVES) if query else ""
    if not positive:
        had = f"an object with {', '.join(value) or 'no fields'}" if isinstance(value, dict) else type(value).__name__
        raise place.error(f"no example, but {had}", hint=HINT)
    negatives = [name for name in value if plain(name).startswith(NEGATIVE) and "score" not in name.lower()]
    scores = _first(value, SCORES)
    scores = scores if scores and isinstance(value[scores], list) else ""
    bad.note_fields(value, (query, positive, *negatives, scores))
    return _of_fields(value, query, positive, negatives, scores, place)


def _of_fields(
    record: Mapping[str, Any], query: str, positive: str, negatives: list[str], scores: str, place: Place
) -> Example:
    answers = _texts(record[positive], positive, place)
    others = [text for name in negatives for text in _texts(record[name], name, place)]
    teacher_scores = scores_of(record[scores] if scores else None, len(answers) + len(others), scores, place)
    fields = (query, positive, negatives[0] if negatives else NEGATIVE[0])
    return Example(
        record[query], answers, others, teacher_scores[: len(answers)], teacher_scores[len(answers) :], fields
    )


def _texts(value: Any, field: str, place: Place) -> list[str]:
    """Reads a text, or a list of them; an empty cell of a table, which is "", is none."""
    if isinstance(value, str):
        return [value] if value else []
    return texts_of(value, field, place)


def _table(file: Any, bad: BadLines) -> Iterator[tuple[Place, Any]]:
    """Yields lines of tab-separated texts as lists, or as records where the first line names the columns."""
    header: list[str] = []
    for number, (place, line) in enumerate(lines(file, bad)):
        cells = line.split("\t")
        if number == 0 and _is_example(dict.fromkeys(cells, "")):
            header = cells
            continue
        if header and len(cells) != len(header):
            problem = f"{len(cells)} columns where the header has {len(header)}"
            bad.set_aside(place.error(problem, hint="correct the line"), line)
            continue
        yield place, dict(zip(header, cells, strict=True)) if header else cells
