"""Lines of a source that cannot be used: they end the step, or are set aside."""

from __future__ import annotations

import collections
import contextlib
import json
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.rows import EmptyTextError
from llm_retriever.errors import InputError


class BadLines:
    """Counts lines that cannot be used, keeps them in a side file, and ends the step when they are too many.

    Args:
        limit: So many are tolerated.
        file: The side file, JSON lines; made with the first bad line.
        tolerate_empty: Whether passages with neither title nor text are set aside without limit.

    Attributes:
        count: How many there were, without such passages.
        empty: How many such passages were tolerated.
        ids: (kind, id) of the passages and queries that were set aside, where the id could be read.
        read: The files that were opened.
        dropped: How many records had a field that no layout knows, by its name.
    """

    def __init__(self, limit: int, file: Path, *, tolerate_empty: bool = False) -> None:
        self.limit, self.file, self.tolerate_empty = limit, file, tolerate_empty
        self.count = self.empty = 0
        self.ids: set[tuple[str, str]] = set()
        self.read: set[Path] = set()
        self.dropped: collections.Counter[str] = collections.Counter()

    def note_fields(self, record: Iterable[str], known: Container[str]) -> None:
        """Counts the fields of a record that are not among the known ones."""
        self.dropped.update(name for name in record if name not in known)

    def set_aside(self, error: InputError, content: Any, *, kind: str = "", row_id: Any = None) -> None:
        """Keeps a bad line in the side file.

        Raises:
            InputError: `error` itself, when there are more than `limit`.
        """
        if self.tolerate_empty and kind == "passage" and isinstance(error, EmptyTextError):
            self.empty += 1
        else:
            self.count += 1
        if self.count > self.limit:
            raise error
        if isinstance(row_id, str | int):
            self.ids.add((kind, str(row_id)))
        if isinstance(content, bytes):
            content = content.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
        entry = {
            "file": str(error.file),
            "line": error.line,
            "field": error.field,
            "problem": error.problem,
            "content": content,
        }
        with self.file.open("a", encoding="utf-8") as side:
            side.write(json.dumps(entry, default=str) + "\n")

    @contextlib.contextmanager
    def tolerated(self, content: Any, *, kind: str = "", row_id: Any = None) -> Iterator[None]:
        """Sets `content` aside when the block raises InputError."""
        try:
            yield
        except InputError as error:
            self.set_aside(error, content, kind=kind, row_id=row_id)
