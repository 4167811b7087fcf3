"""Reading the files of a source line by line: JSON lines, tab-separated values and parquet, plain or gzipped.

A line that cannot be used goes to `BadLines`, which ends the step or sets the line aside.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from llm_retriever.errors import InputError
from llm_retriever.sources.rows import EmptyTextError, Place

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


class SourceFile(NamedTuple):
    """A file of a source: where it lies now, and what its owner calls it (they differ for a copy from s3://)."""

    path: Path
    shown: str


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
    """

    def __init__(self, limit: int, file: Path, *, tolerate_empty: bool = False) -> None:
        self.limit, self.file, self.tolerate_empty = limit, file, tolerate_empty
        self.count = self.empty = 0
        self.ids: set[tuple[str, str]] = set()

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
            side.write(json.dumps(entry) + "\n")

    @contextlib.contextmanager
    def tolerated(self, content: Any, *, kind: str = "", row_id: Any = None) -> Iterator[None]:
        """Sets `content` aside when the block raises InputError."""
        try:
            yield
        except InputError as error:
            self.set_aside(error, content, kind=kind, row_id=row_id)


def lines(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, str]]:
    """The lines of a UTF-8 text file that are not blank, without their ends; a byte-order mark is dropped.

    Raises:
        InputError: The file is missing or empty, or a line is not UTF-8.
    """
    empty = True
    with _opened(file) as stream:
        for number, raw in enumerate(_readable(stream, file), start=1):
            place = Place(file.shown, number)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                problem = f"not valid UTF-8 (byte {error.start + 1})"
                mend = "save the file as UTF-8"
                bad.set_aside(InputError(problem, file=file.shown, line=number, mend=mend), raw)
                continue
            finally:
                empty = False
            if text.strip():
                yield place, text
    if empty:
        raise InputError("the file is empty", file=file.shown, mend="give the file its lines")


def _opened(file: SourceFile) -> IO[bytes]:
    try:
        return gzip.open(file.path, "rb") if file.path.suffix == ".gz" else file.path.open("rb")  # type: ignore[return-value]
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such file", file=file.shown, mend="add it to the source") from None


def _readable(stream: IO[bytes], file: SourceFile) -> Iterator[bytes]:
    try:
        yield from stream
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"not a whole gzip file ({error})", file=file.shown, mend="copy it again") from None


def records(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The records of a JSON-lines or parquet file, one object each; for parquet the line is the row.

    Raises:
        InputError: The file is missing, empty or not of its kind, or a line is not a JSON object.
    """
    if file.path.suffix == ".parquet":
        yield from _parquet_records(file)
        return
    for place, text in lines(file, bad):
        try:
            record = _parsed(text, place)
        except InputError as error:
            bad.set_aside(error, text)
        else:
            yield place, record


def _parsed(text: str, place: Place) -> dict[str, Any]:
    mend = "write one JSON object a line"
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at column {error.colno}"
        raise InputError(f"not valid JSON ({reason})", file=place.file, line=place.line, mend=mend) from None
    if not isinstance(record, dict):
        problem = f"not a JSON object but {type(record).__name__}"
        raise InputError(problem, file=place.file, line=place.line, mend=mend)
    return record


def _parquet_records(file: SourceFile) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "reading parquet needs pyarrow",
            file=file.shown,
            mend="install llm-retriever[hub], or convert to JSON lines",
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(file.path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield Place(file.shown, number), record
    except arrow.ArrowInvalid as error:
        raise InputError(f"not a parquet file ({error})", file=file.shown, mend="copy it again") from None
    if not number:
        raise InputError("the file is empty", file=file.shown, mend="give the file its rows")
