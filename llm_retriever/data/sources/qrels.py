"""Reads qrels in columns: finds which column is the query, which the passage and which the grade.

A header line says it by its names, in any order, and further columns are passed over. Without a header, three columns are BEIR's
(query, passage, grade) and four are TREC's (query, 0 or Q0, passage, grade). Whatever else could be read in two ways ends
the preparation: where ids are numbers, nothing later would notice that columns were exchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llm_retriever.data.grades import WHOLE, grade_of
from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.reading import lines, records
from llm_retriever.data.sources.rows import JudgmentRow, Place, Row, checked_id, checked_split, identifier, plain
from llm_retriever.data.sources.source_files import SUFFIXES, TABLES, SourceFile
from llm_retriever.errors import InputError

QUERY, PASSAGE, GRADE = "query-id", "corpus-id", "score"
ITERATION = ("0", "Q0", "q0")
"""What TREC's second column holds in practice: nobody reads it."""
HEADER_HINT = "begin the file with a header line of the columns' names, as query-id, corpus-id and score"
COLUMNS_HINT = "write query id, passage id and grade (BEIR), or query id, 0, passage id and grade (TREC), in every line"
QRELS_SUFFIXES = (*TABLES, *SUFFIXES)
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
IN_A_NAME = re.compile(r"(?:^|(?<=[\d._-]))qrels?(?=[._-]|$)", re.IGNORECASE)
SEPARATORS = re.compile(r"[._-]{2,}")
# Names as `plain` leaves them. An id's name goes before a bare one: beside `query-id`, `query` is the text.
NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    QUERY: (("queryid", "qid", "topicid"), ("query", "topic", "q")),
    PASSAGE: (
        ("corpusid", "docid", "docno", "documentid", "passageid", "pid", "did"),
        ("passage", "document", "doc", "corpus", "p", "d"),
    ),
    GRADE: (("score", "relevance", "grade", "label", "rel", "judgment", "judgement", "qrel", "rating"),),
}


class _Layout(NamedTuple):
    """Positions of query, passage and grade among the columns of a line."""

    width: int
    query: int
    passage: int
    grade: int
    has_header: bool = False


_BEIR, _TREC = _Layout(3, 0, 1, 2), _Layout(4, 0, 2, 3)


def split_in_name(path: Path) -> str:
    """Split in the name of qrels, beside that word: ``dev.small`` of ``qrels.dev.small.tsv.gz``; "" if none.

    >>> [split_in_name(Path(name)) for name in ("qrels.dl19.txt", "2019qrels-pass.txt", "qrels.tsv", "queries.dev.tsv")]
    ['dl19', '2019-pass', '', '']
    """
    suffix = next((suffix for suffix in QRELS_SUFFIXES if path.name.endswith(suffix)), "")
    stem = SHARD.sub("", path.name.removesuffix(suffix))
    rest, number = IN_A_NAME.subn("", stem)
    return SEPARATORS.sub(".", rest).strip("._-") if suffix and number else ""


def judgments(file: SourceFile, split: str, bad: BadLines) -> Iterator[Row]:
    """Reads judgments of a file of any kind.

    Raises:
        InputError: It holds none, a line is unusable, or it does not tell which column is which.
    """
    checked_split(split, file.shown)
    read = tsv_judgments if file.path.name.endswith(TABLES) else record_judgments
    return some_judgments(file, read(file, split, bad), bad)


def record_judgments(file: SourceFile, split: str, bad: BadLines) -> Iterator[JudgmentRow]:
    """Reads judgments of JSON, CSV or parquet, whose fields are found by their names as in a header.

    Raises:
        InputError: A record has a grade that is none, or does not tell which field is which.
    """
    fields: dict[tuple[str, ...], list[str]] = {}
    for place, record in records(file, bad):
        names = tuple(record)
        with bad.tolerated(record):
            if names not in fields:
                fields[names] = [names[_column(role, list(names), place)] for role in NAMES]
            query_field, passage_field, grade_field = fields[names]
            query, passage = (identifier(record, field, place) for field in (query_field, passage_field))
            grade = grade_of(record[grade_field], file=place.file, line=place.line, field=grade_field)
            yield JudgmentRow(place, split, query, passage, grade)


def tsv_judgments(file: SourceFile, split: str, bad: BadLines) -> Iterator[JudgmentRow]:
    """Reads judgments of a file whose columns are separated by tabs or other white space.

    Raises:
        InputError: A line has other columns or a grade that is none, or the file does not tell which column is which.
    """
    layout: _Layout | None = None
    rows, has_passages = 0, False
    for place, line in lines(file, bad):
        cells = _cells(line)
        if layout is None:
            layout = _layout(cells, place)
            if layout is not None and layout.has_header:
                continue
        if layout is _TREC:
            _check_iteration(cells, place)
        with bad.tolerated(line):
            judgment = _judgment(cells, layout, split, place)
            rows, has_passages = rows + 1, has_passages or cells[1] not in ITERATION
            yield judgment
    if layout is _BEIR and rows > 1 and not has_passages:
        raise InputError(
            "the second of three columns is 0 or Q0 throughout, as in TREC's qrels, whose grades are missing then",
            file=file.shown,
            hint=f"add the grades as a fourth column; if it is a passage's id, {HEADER_HINT}",
        )


def _layout(cells: list[str], place: Place) -> _Layout | None:
    """Finds the layout of a file by its first line, None where that line does not show it.

    Raises:
        InputError: It is a header that does not name the columns.
    """
    if _is_header(cells):
        query, passage, grade = (_column(role, cells, place) for role in NAMES)
        return _Layout(len(cells), query, passage, grade, has_header=True)
    return next((layout for layout in (_BEIR, _TREC) if len(cells) == layout.width), None)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())]


def _is_header(cells: list[str]) -> bool:
    """Whether a first line names columns: all three of them, or any where there is no number that could be a grade."""
    names = {plain(cell) for cell in cells}
    known = [any(names & set(tier) for tier in tiers) for tiers in NAMES.values()]
    return all(known) or (any(known) and not any(WHOLE.fullmatch(cell) for cell in cells[2:]))


def _column(role: str, cells: list[str], place: Place) -> int:
    for names in NAMES[role]:
        columns = [number for number, cell in enumerate(cells) if plain(cell) in names]
        if len(columns) == 1:
            return columns[0]
        if columns:
            problem = "several columns of the header are called so: " + ", ".join(cells[number] for number in columns)
            raise place.error(problem, field=role, hint="leave one of them, or rename the others")
    raise place.error(
        f"the header has no such column; it has {', '.join(cells)}",
        field=role,
        hint=f"name the columns {QUERY}, {PASSAGE} and {GRADE}",
    )


def _check_iteration(cells: list[str], place: Place) -> None:
    """Raises InputError where the second of four columns is not TREC's: what follows is another order, not a bad line."""
    if len(cells) == _TREC.width and cells[1] not in ITERATION:
        raise place.error(
            f"four columns without a header, of which the second is {cells[1]!r} and not 0 or Q0 as in TREC's qrels",
            hint=HEADER_HINT,
        )


def _judgment(cells: list[str], layout: _Layout | None, split: str, place: Place) -> JudgmentRow:
    if layout is None or len(cells) != layout.width:
        named = f"give it the {layout.width} columns of the header" if layout and layout.has_header else COLUMNS_HINT
        raise place.error(f"{len(cells)} columns", hint=named)
    query = checked_id(cells[layout.query], QUERY, place)
    passage = checked_id(cells[layout.passage], PASSAGE, place)
    grade = grade_of(cells[layout.grade], file=place.file, line=place.line, field=GRADE)
    return JudgmentRow(place, split, query, passage, grade)


def some_judgments(file: SourceFile, rows: Iterator[Row], bad: BadLines) -> Iterator[Row]:
    """Yields the rows themselves.

    Raises:
        InputError: There was none in the whole file.
    """
    before, none = bad.count, True
    for row in rows:
        none = False
        yield row
    if none and bad.count == before:
        raise InputError("holds no judgment", file=file.shown, hint="add judgments, or remove the file")
