"""MS MARCO: `collection.tsv` (pid, text), `queries.<split>.tsv` (qid, text), `qrels.<split>.tsv` (TREC's four columns).

Titles are not part of it; an optional `para.title.txt` (pid, title) adds them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from llm_retriever.errors import InputError
from llm_retriever.sources.qrels import some_judgments, tsv_judgments
from llm_retriever.sources.reading import BadLines, SourceFile, lines
from llm_retriever.sources.rows import (
    PassageRow,
    Place,
    QueryRow,
    Row,
    checked_id,
    checked_split,
    checked_text,
    title_of,
)

COLLECTION_FILE = "collection.tsv"
TITLES_FILE = "para.title.txt"
NO_TITLE = ("", "-")


class MsMarcoDirectory:
    """A directory in MS MARCO's layout; each file may be gzipped."""

    def __init__(self, directory: Path, shown: str) -> None:
        self.directory, self.shown = directory, shown

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether there is a `collection.tsv`, or queries and qrels as they lie beside one."""
        if _present(directory, COLLECTION_FILE):
            return True
        return all(any(directory.glob(pattern)) for pattern in ("queries.*.tsv*", "qrels.*.tsv*"))

    def rows(self, bad: BadLines) -> Iterator[Row]:
        """Queries and judgments first: they are small, so that what is wrong with them shows early."""
        for file in self._files("queries"):
            yield from self._queries(file, bad)
        for file in self._files("qrels"):
            split = checked_split(_split(file.path), file.shown)
            yield from some_judgments(file, tsv_judgments(file, split, bad), bad)
        yield from self._passages(bad)

    def _files(self, kind: str) -> list[SourceFile]:
        found = sorted(path for path in self.directory.glob(f"{kind}.*") if _split(path))
        if not found:
            raise InputError(
                "no such file",
                file=f"{self.shown}/{kind}.train.tsv",
                mend="an MS MARCO source has collection.tsv, queries.<split>.tsv and qrels.<split>.tsv",
            )
        return [self._source_file(path) for path in found]

    def _queries(self, file: SourceFile, bad: BadLines) -> Iterator[QueryRow]:
        """Queries; they may repeat, because `queries.dev.small.tsv` is a part of `queries.dev.tsv`."""
        for place, line in lines(file, bad):
            number, text = _two_columns(line)
            with bad.tolerated(line, kind="query", row_id=number):
                yield QueryRow(place, checked_id(number, "qid", place), _text(text, place), True)

    def _passages(self, bad: BadLines) -> Iterator[PassageRow]:
        path = _present(self.directory, COLLECTION_FILE) or self.directory / COLLECTION_FILE
        with self._titles(bad) as titles:
            for place, line in lines(self._source_file(path), bad):
                number, text = _two_columns(line)
                with bad.tolerated(line, kind="passage", row_id=number):
                    yield PassageRow(place, checked_id(number, "pid", place), titles.get(number), _text(text, place))

    @contextlib.contextmanager
    def _titles(self, bad: BadLines) -> Iterator[Titles]:
        path = _present(self.directory, TITLES_FILE)
        with contextlib.closing(Titles()) as titles:
            for place, line in lines(self._source_file(path), bad) if path else ():
                number, title = _two_columns(line)
                with bad.tolerated(line):
                    title = title_of({"title": title}, place)
                    titles.add(checked_id(number, "pid", place), title)
            yield titles

    def _source_file(self, path: Path) -> SourceFile:
        return SourceFile(path, f"{self.shown}/{path.name}")


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
        """The title of a passage, or an empty one."""
        row = self._database.execute("SELECT title FROM title WHERE id = ?", (passage_id,)).fetchone()
        return row[0] if row else ""

    def close(self) -> None:
        """Removes the database."""
        self._database.close()


def _present(directory: Path, name: str) -> Path | None:
    return next((path for path in (directory / name, directory / f"{name}.gz") if path.is_file()), None)


def _split(path: Path) -> str:
    """``dev.small`` of ``qrels.dev.small.tsv.gz``; empty where the name is another."""
    name = path.name.removesuffix(".gz")
    return name.split(".", 1)[1].removesuffix(".tsv") if name.endswith(".tsv") and name.count(".") > 1 else ""


def _two_columns(line: str) -> tuple[str, str]:
    number, _, text = line.partition("\t")
    return number.strip(), text


def _text(text: str, place: Place) -> str:
    return checked_text(text, "text", place)
