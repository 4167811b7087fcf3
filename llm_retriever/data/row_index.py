"""The index of all rows while a collection is prepared: ids, contents, queries, judgments.

It lies in an SQLite file with a bounded cache, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm_retriever.data.sources.rows import JudgmentRow, PassageRow, Place, QueryRow, TeacherRow

CACHE_KIB = 4 * 1024
SCHEMA = """
CREATE TABLE file (number INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE passage (id TEXT PRIMARY KEY, content BLOB, keeper TEXT) WITHOUT ROWID;
CREATE TABLE content (content BLOB PRIMARY KEY, id TEXT) WITHOUT ROWID;
CREATE TABLE query (number INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT);
CREATE TABLE judgment (number INTEGER PRIMARY KEY, split TEXT, query TEXT, passage TEXT, grade INTEGER,
                       file INTEGER, line INTEGER);
CREATE TABLE teacher (number INTEGER PRIMARY KEY, query TEXT, passage TEXT, score REAL, UNIQUE (query, passage));
CREATE TABLE set_aside (kind TEXT, id TEXT, PRIMARY KEY (kind, id)) WITHOUT ROWID;
"""
# One row a query and kept passage, in the order in which the source first named them.
FINAL_JUDGMENTS = """
SELECT query, keeper, MAX(grade) FROM judgment JOIN passage ON passage.id = judgment.passage
WHERE split = ? GROUP BY query, keeper ORDER BY MIN(number)
"""
WITH_OWN_PASSAGE = """
FROM query WHERE id IN (SELECT query FROM judgment) AND id IN (SELECT id FROM passage WHERE id = keeper)
"""


class Finding(NamedTuple):
    """A judgment at fault: its place, the id concerned, and whether that id was itself set aside before."""

    place: Place
    query_id: str
    passage_id: str
    is_consequence: bool


class RowIndex:
    """An index of rows, on disk.

    Args:
        path: The SQLite file; the caller removes it.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{CACHE_KIB}; PRAGMA temp_store=FILE;"
        )
        self._database.executescript(SCHEMA)
        self._database.execute("BEGIN")
        self._files: dict[str, int] = {}

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    def add_passage(self, row: PassageRow, *, merge: bool) -> str:
        """Adds a passage and returns whether it is new.

        Args:
            row: The passage.
            merge: Whether passages of the same content become one.

        Returns:
            ``"new"``, ``"copy"`` (another id has its content), ``"repeated"`` (same id, same content) or
            ``"conflict"`` (same id, other content).
        """
        content = row.content()
        try:
            self._database.execute("INSERT INTO passage VALUES (?, ?, ?)", (row.id, content, row.id))
        except sqlite3.IntegrityError:
            known = self._one("SELECT content FROM passage WHERE id = ?", row.id)
            return "repeated" if known == content else "conflict"
        if not merge:
            return "new"
        try:
            self._database.execute("INSERT INTO content VALUES (?, ?)", (content, row.id))
        except sqlite3.IntegrityError:
            keeper = self._one("SELECT id FROM content WHERE content = ?", content)
            self._database.execute("UPDATE passage SET keeper = ? WHERE id = ?", (keeper, row.id))
            return "copy"
        return "new"

    def add_query(self, row: QueryRow) -> str:
        """Adds a query; ``"new"``, ``"repeated"`` or ``"conflict"`` as for passages."""
        try:
            self._database.execute("INSERT INTO query (id, text) VALUES (?, ?)", (row.id, row.text))
        except sqlite3.IntegrityError:
            known = self._one("SELECT text FROM query WHERE id = ?", row.id)
            return "repeated" if known == row.text else "conflict"
        return "new"

    def add_judgment(self, row: JudgmentRow) -> None:
        """Adds a judgment; its ids need not be known yet."""
        number = self._files.get(row.place.file)
        if number is None:
            number = self._files[row.place.file] = len(self._files)
            self._database.execute("INSERT INTO file VALUES (?, ?)", (number, row.place.file))
        self._database.execute(
            "INSERT INTO judgment (split, query, passage, grade, file, line) VALUES (?, ?, ?, ?, ?, ?)",
            (row.split, row.query_id, row.passage_id, row.grade, number, row.place.line),
        )

    def add_teacher(self, row: TeacherRow) -> None:
        """Adds a teacher's score; the first one of a pair counts."""
        self._database.execute(
            "INSERT OR IGNORE INTO teacher (query, passage, score) VALUES (?, ?, ?)",
            (row.query_id, row.passage_id, row.score),
        )

    def note_set_aside(self, ids: Iterable[tuple[str, str]]) -> None:
        """Notes which passages and queries were bad lines, so that judgments of them are only consequences."""
        self._database.executemany("INSERT OR IGNORE INTO set_aside VALUES (?, ?)", ids)

    def index_judgments(self) -> None:
        """Prepares the look-ups by query; called once, after the last judgment."""
        self._database.execute("CREATE INDEX judgment_of_query ON judgment (split, query)")

    def judgments_of_unknown(self, kind: str) -> Iterator[Finding]:
        """Yields judgments whose `kind` ("query" or "passage") the source does not have."""
        yield from self._findings(
            f"""SELECT name, line, query, passage, EXISTS (
                   SELECT 1 FROM set_aside WHERE kind = '{kind}' AND set_aside.id = judgment.{kind})
               FROM judgment JOIN file ON file.number = judgment.file
               WHERE NOT EXISTS (SELECT 1 FROM {kind} WHERE {kind}.id = judgment.{kind}) ORDER BY judgment.number"""  # noqa: S608
        )

    def contradictions(self) -> Iterator[Finding]:
        """Yields judgments of a pair that an earlier line of the same split gave another grade."""
        yield from self._findings(
            """SELECT name, MAX(line), query, passage, 0 FROM judgment JOIN file ON file.number = judgment.file
               GROUP BY split, query, passage HAVING MIN(grade) <> MAX(grade) ORDER BY MIN(judgment.number)"""
        )

    def training_queries_without_positives(self) -> Iterator[Finding]:
        """Yields training queries that no passage answers, at their first judgment.

        It is a consequence when judgments of the query were dropped before.
        """
        yield from self._findings(
            """SELECT name, MIN(line), query, '', EXISTS (
                   SELECT 1 FROM set_aside WHERE kind = 'answer' AND set_aside.id = judgment.query)
               FROM judgment JOIN file ON file.number = judgment.file WHERE split = 'train'
               GROUP BY query HAVING MAX(grade) < 1 ORDER BY MIN(judgment.number)"""
        )

    def _findings(self, statement: str) -> Iterator[Finding]:
        for name, line, query, passage, consequence in self._rows(statement):
            yield Finding(Place(name, line), query, passage, bool(consequence))

    def drop_judgments_of_unknown(self, kind: str) -> int:
        """Drops judgments whose `kind` the source does not have; returns how many."""
        unknown = f"NOT EXISTS (SELECT 1 FROM {kind} WHERE {kind}.id = judgment.{kind})"  # noqa: S608
        self._database.execute(
            f"INSERT OR IGNORE INTO set_aside SELECT 'answer', query FROM judgment WHERE {unknown}"  # noqa: S608
        )
        return self._database.execute(f"DELETE FROM judgment WHERE {unknown}").rowcount  # noqa: S608

    def drop_training_query(self, query_id: str) -> None:
        """Drops the judgments of a training query."""
        self._database.execute("DELETE FROM judgment WHERE split = 'train' AND query = ?", (query_id,))

    def splits(self) -> list[str]:
        """Splits that have judgments, train first, the others by name."""
        names = [name for (name,) in self._rows("SELECT DISTINCT split FROM judgment")]
        return sorted(names, key=lambda name: (name != "train", name))

    def hold_out(self, number: int, seed: int) -> None:
        """Moves training queries, drawn by the seed, into split dev, but none that another split asks.

        Queries of the same text stay together as far as the number allows; at most a fifth are moved.
        """
        self._database.create_function("draw", 1, lambda text: _draw(seed, text), deterministic=True)
        self._database.execute(
            """UPDATE judgment SET split = 'dev' WHERE split = 'train' AND query IN (
                   SELECT id FROM query WHERE id IN (SELECT query FROM judgment WHERE split = 'train')
                   AND LOWER(text) NOT IN (SELECT LOWER(text) FROM query JOIN judgment ON query = id WHERE split <> 'train')
                   ORDER BY draw(LOWER(text)), id LIMIT ?)""",
            (min(number, self.number_of_queries("train") // 5),),
        )

    def choose_passages(self, number: int, seed: int) -> None:
        """Marks which passages stay in a subset: the judged ones, and others drawn by the seed up to `number`."""
        self._database.create_function("draw", 1, lambda text: _draw(seed, text), deterministic=True)
        self._database.executescript("CREATE TABLE chosen (id TEXT PRIMARY KEY) WITHOUT ROWID;")
        judged = self._database.execute(
            """INSERT OR IGNORE INTO chosen SELECT keeper FROM judgment JOIN passage ON passage.id = judgment.passage"""
        ).rowcount
        self._database.execute(
            """INSERT INTO chosen SELECT id FROM passage WHERE id = keeper AND id NOT IN (SELECT id FROM chosen)
               ORDER BY draw(id) LIMIT ?""",
            (max(0, number - judged),),
        )

    def keeper(self, passage_id: str) -> str | None:
        """Id of the passage that a passage of the source was merged into, its own if it was not; None if unknown."""
        kept: str | None = self._one("SELECT keeper FROM passage WHERE id = ?", passage_id)
        return kept

    def is_chosen(self, passage_id: str) -> bool:
        """Whether `choose_passages` let a passage stay."""
        return self._one("SELECT 1 FROM chosen WHERE id = ?", passage_id) is not None

    def merged(self) -> Iterator[tuple[str, str]]:
        """(id, id of the kept passage) of the passages that were merged into another one."""
        yield from self._rows("SELECT id, keeper FROM passage WHERE id <> keeper ORDER BY id")

    def teacher_scores(self) -> Iterator[tuple[str, str, float]]:
        """(query id, id of the kept passage, a teacher's score) for the queries that a split judges."""
        yield from self._rows(
            """SELECT query, keeper, MAX(score) FROM teacher JOIN passage ON passage.id = teacher.passage
               WHERE query IN (SELECT query FROM judgment) GROUP BY query, keeper ORDER BY MIN(number)"""
        )

    def queries_without_relevant(self, split: str) -> int:
        """Counts the queries of a split that no passage answers."""
        return int(
            self._one(
                "SELECT COUNT(*) FROM (SELECT query FROM judgment WHERE split = ? GROUP BY query HAVING MAX(grade) < 1)",
                split,
            )
        )

    def queries_with_own_passage(self) -> int:
        """Counts the judged queries that have the id of a passage."""
        return int(self._one(f"SELECT COUNT(*) {WITH_OWN_PASSAGE}"))

    def some_queries_with_own_passage(self, number: int) -> dict[str, str]:
        """Text by id of at most `number` of them, drawn in the same way at every preparation."""
        self._database.create_function("draw", 1, lambda text: _draw(0, text), deterministic=True)
        return dict(self._rows(f"SELECT id, text {WITH_OWN_PASSAGE} ORDER BY draw(id) LIMIT ?", number))

    def judged_queries(self) -> Iterator[tuple[str, str]]:
        """(id, text) of the queries that a split judges, in the source's order."""
        yield from self._rows("SELECT id, text FROM query WHERE id IN (SELECT query FROM judgment) ORDER BY number")

    def final_judgments(self, split: str) -> Iterator[tuple[str, str, int]]:
        """(query id, id of the kept passage, grade) of a split, each pair once with its highest grade."""
        yield from self._rows(FINAL_JUDGMENTS, split)

    def number_of_queries(self, split: str) -> int:
        """Counts the queries that a split judges."""
        return int(self._one("SELECT COUNT(DISTINCT query) FROM judgment WHERE split = ?", split))

    def training_queries_seen_in_evaluation(self) -> int:
        """Counts training queries that have, letter case aside, the text of a query of another split."""
        return int(
            self._one(
                """SELECT COUNT(*) FROM query WHERE id IN (SELECT query FROM judgment WHERE split = 'train')
                   AND LOWER(text) IN (SELECT LOWER(text) FROM query
                       WHERE id IN (SELECT query FROM judgment WHERE split <> 'train'))"""
            )
        )

    def _one(self, statement: str, *values: Any) -> Any:
        row = self._database.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def _rows(self, statement: str, *values: Any) -> Iterator[Any]:
        with contextlib.closing(self._database.cursor()) as cursor:
            yield from cursor.execute(statement, values)


def _draw(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\t{text}".encode(), digest_size=8).digest()
