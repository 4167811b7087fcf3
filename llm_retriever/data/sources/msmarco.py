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

from llm_retriever.data.sources.qrels import judgments, split_in_name
from llm_retriever.data.sources.reading import BadLines, lines
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
TEXTS = ("text", "passage", "contents", "content", "body", "document", "paragraph", "query", "question", "title")


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


def _cells(file: SourceFile, bad: BadLines, ids: tuple[str, ...]) -> Iterator[tuple[Place, Cells]]:
    """Reads lines of an id, a tab and a text, or of the columns that a header names.

    Raises:
        InputError: A line has fewer columns than the header.
    """
    header: list[str] = []
    for number, (place, line) in enumerate(lines(file, bad)):
        if number == 0 and (header := _header(line, ids)):
            continue
        if not header:
            name, _, text = line.partition("\t")
            yield place, Cells(line, name.strip(), text)
            continue
        columns = line.split("\t", len(header) - 1)
        with bad.tolerated(line):
            if len(columns) < len(header):
                raise place.error(f"{len(columns)} columns where the header has {len(header)}", hint="correct the line")
            by_name = dict(zip(header, columns, strict=True))
            text = next(by_name[name] for name in TEXTS if name in by_name)
            name = next(by_name[name] for name in ids if name in by_name).strip()
            yield place, Cells(line, name, text, by_name.get("title", "") if text != by_name.get("title") else "")


def _header(line: str, ids: tuple[str, ...]) -> list[str]:
    """Plain names of a first line's columns, where it names an id and a text; [] where it is no header."""
    names = [plain(cell) for cell in line.split("\t")]
    return names if set(names) & set(ids) and set(names) & set(TEXTS) else []


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
