"""MS MARCO: `collection.tsv` (pid, text), `queries.<split>.tsv` (qid, text), `qrels.<split>.tsv` (TREC's four columns).

Titles are not part of it; an optional `para.title.txt` (pid, title) adds them. Where a split has no qrels,
`qidpidtriples.<split>.tsv` (qid, relevant pid, other pid) stand for them.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.qrels import judgments, split_in_name
from llm_retriever.data.sources.reading import lines
from llm_retriever.data.sources.rows import (
    PASSAGE_IDS,
    QUERY_IDS,
    JudgmentRow,
    PassageRow,
    Place,
    QueryRow,
    Row,
    checked_id,
    checked_text,
    plain,
    title_of,
)
from llm_retriever.data.sources.source_files import TABLES, SourceFile, source_file
from llm_retriever.errors import InputError

COLLECTION_FILE = "collection.tsv"
TITLES_FILE = "para.title.txt"
NO_TITLE = ("", "-")
QUERIES = re.compile(r"(?:^|[._-])queries(?=[._-])", re.IGNORECASE)
ID_TRIPLES = re.compile(r"qidpidtriples\.(?P<split>\w+)\..*", re.IGNORECASE)
TEXTS = ("text", "passage", "contents", "content", "body", "document", "paragraph", "query", "question")


class MsMarcoDirectory:
    """A directory in MS MARCO's layout; each file may be gzipped."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown
        self.queries, self.qrels, self.triples = _by_kind(directory)

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether there is a `collection.tsv`, or queries and qrels as they lie beside one."""
        if _present(directory, COLLECTION_FILE):
            return True
        queries, qrels, triples = _by_kind(directory)
        return bool(queries and (qrels or triples))

    def rows(self, bad: BadLines) -> Iterator[Row]:
        """Yields queries and judgments first: they are small, so that what is wrong with them shows early."""
        if not self.queries:
            raise self._missing("queries.train.tsv")
        for path in self.queries:
            yield from self._queries(self._source_file(path), bad)
        if not self.qrels and not self.triples:
            raise self._missing("qrels.train.tsv")
        for path, split in self.qrels.items():
            yield from judgments(self._source_file(path), split, bad)
        for path, split in self.triples.items():
            if split not in self.qrels.values():
                yield from _triples(self._source_file(path), split, bad)
        yield from self._passages(bad)

    def _missing(self, name: str) -> InputError:
        return InputError(
            "no such file",
            file=f"{self.shown}/{name}",
            hint="an MS MARCO source has collection.tsv, queries.<split>.tsv and qrels.<split>.tsv",
        )

    def _queries(self, file: SourceFile, bad: BadLines) -> Iterator[QueryRow]:
        """Yields queries; they may repeat, because `queries.dev.small.tsv` is a part of `queries.dev.tsv`."""
        for place, cells in _cells(file, bad, QUERY_IDS):
            with bad.tolerated(cells.line, kind="query", row_id=cells.id):
                yield QueryRow(place, checked_id(cells.id, "qid", place), _text(cells.text, place), True)

    def _passages(self, bad: BadLines) -> Iterator[Row]:
        path = _present(self.directory, COLLECTION_FILE) or self.directory / COLLECTION_FILE
        with self._titles(bad) as titles:
            for place, cells in _cells(self._source_file(path), bad, PASSAGE_IDS):
                with bad.tolerated(cells.line, kind="passage", row_id=cells.id):
                    name = checked_id(cells.id, "pid", place)
                    title = title_of({"title": cells.title}, place) or titles.get(name)
                    yield PassageRow(place, name, title, _text(cells.text, place))

    @contextlib.contextmanager
    def _titles(self, bad: BadLines) -> Iterator[Titles]:
        path = _present(self.directory, TITLES_FILE)
        with contextlib.closing(Titles()) as titles:
            for place, cells in _cells(self._source_file(path), bad, PASSAGE_IDS) if path else ():
                with bad.tolerated(cells.line):
                    title = title_of({"title": cells.text}, place)
                    titles.add(checked_id(cells.id, "pid", place), title)
            yield titles

    def _source_file(self, path: Path) -> SourceFile:
        return source_file(path, self.directory, self.shown)


def _by_kind(directory: Path) -> tuple[list[Path], dict[Path, str], dict[Path, str]]:
    """Sorts out the files of queries, those of judgments and those of triples of ids, both with their splits."""
    paths = sorted(path for path in directory.iterdir() if path.is_file() and path.name.endswith(TABLES))
    qrels = {path: split for path in paths if (split := split_in_name(path))}
    queries = [path for path in paths if QUERIES.search(path.name) and path not in qrels]
    triples = {path: match["split"] for path in paths if (match := ID_TRIPLES.fullmatch(path.name))}
    return queries, qrels, triples


class Cells(NamedTuple):
    """The columns of a line, and the line itself."""

    line: str
    id: str
    text: str
    title: str = ""


class _Columns(NamedTuple):
    """A header: its names, and which columns are the id, the text and the title (-1 = none)."""

    names: list[str]
    id: int
    text: int
    title: int

    def cells(self, line: str, place: Place) -> Cells:
        """Parses a line; the last column may hold tabs."""
        columns = line.split("\t", len(self.names) - 1)
        if len(columns) < len(self.names):
            raise place.error(f"{len(columns)} columns where the header has {len(self.names)}", hint="correct the line")
        title = "" if self.title < 0 else columns[self.title]
        return Cells(line, columns[self.id].strip(), columns[self.text], title)

    def others(self) -> list[str]:
        """Names of the columns that are not read."""
        return [name for number, name in enumerate(self.names) if number not in (self.id, self.text, self.title)]


def _cells(file: SourceFile, bad: BadLines, ids: tuple[str, ...]) -> Iterator[tuple[Place, Cells]]:
    """Reads lines of an id, a tab and a text, or of the columns that a header names.

    Raises:
        InputError: A line has fewer columns than the header, or the header does not tell which column is the text.
    """
    columns: _Columns | None = None
    for number, (place, line) in enumerate(lines(file, bad)):
        if number == 0 and (columns := _header(line, ids, place)):
            continue
        if columns is None:
            name, _, text = line.partition("\t")
            yield place, Cells(line, name.strip(), text)
            continue
        bad.note_fields(columns.others(), ())
        with bad.tolerated(line):
            yield place, columns.cells(line, place)


def _header(line: str, ids: tuple[str, ...], place: Place) -> _Columns | None:
    """Finds the columns by a first line that begins with an id's name, or names an id and a text anywhere; else None.

    Raises:
        InputError: It is a header, and several columns or none could be the text.
    """
    shown = [cell.strip() for cell in line.split("\t")]
    names = [plain(cell) for cell in shown]
    of_id = next((number for number, name in enumerate(names) if name in (*ids, "identifier")), -1)
    of_text = _text_column(names, of_id)
    if of_id < 0 or (of_id > 0 and of_text < 0):
        return None
    if of_text < 0 or any(name and names.count(name) > 1 for name in names):
        problem = f"the header does not tell which column is the text; it has {', '.join(shown)}"
        raise place.error(problem, hint="name one column text, and every column otherwise")
    of_title = names.index("title") if "title" in names else -1
    return _Columns(shown, of_id, of_text, -1 if of_title == of_text else of_title)


def _text_column(names: list[str], of_id: int) -> int:
    """Finds the text beside the id: by its name, by the end of its name (`passage_text`), or as the only other column."""
    others = [number for number in range(len(names)) if number != of_id]
    exact = [number for text in TEXTS for number in others if names[number] == text]
    ending = [number for text in TEXTS for number in others if names[number].endswith(text)]
    titles = [number for number in others if names[number] == "title"]
    only = others if len(others) == 1 and of_id == 0 else []
    return next(iter(exact or ending or titles or only), -1)


def _triples(file: SourceFile, split: str, bad: BadLines) -> Iterator[JudgmentRow]:
    """Yields the relevant pairs of (qid, relevant pid, other pid), each once: there are hundreds of lines of a pair."""
    seen: set[tuple[str, str]] = set()
    for place, line in lines(file, bad):
        columns = line.split()
        with bad.tolerated(line):
            if len(columns) != 3:
                raise place.error(f"{len(columns)} columns", hint="write qid, relevant pid and other pid")
            pair = (columns[0], columns[1])
            if pair not in seen:
                seen.add(pair)
                query, passage = checked_id(columns[0], "qid", place), checked_id(columns[1], "pid", place)
                yield JudgmentRow(place, split, query, passage, 1)


class Titles:
    """Titles by passage id, in a temporary database: there may be millions, in any order."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; BEGIN;")
        self._database.execute("CREATE TABLE title (id TEXT PRIMARY KEY, title TEXT) WITHOUT ROWID")

    def add(self, passage_id: str, title: str) -> None:
        """Remembers a title; the first one counts."""
        if title not in NO_TITLE:
            self._database.execute("INSERT OR IGNORE INTO title VALUES (?, ?)", (passage_id, title))

    def get(self, passage_id: str) -> str:
        """Returns the title of a passage, or an empty one."""
        row = self._database.execute("SELECT title FROM title WHERE id = ?", (passage_id,)).fetchone()
        return row[0] if row else ""

    def close(self) -> None:
        """Removes the database."""
        self._database.close()


def _present(directory: Path, name: str) -> Path | None:
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def _text(text: str, place: Place) -> str:
    return checked_text(text, "text", place)
