"""Reads the files of a source record by record: JSON lines and arrays, separated values and parquet, plain or gzipped.

A line that cannot be used goes to `BadLines`, which ends the step or sets the line aside.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.rows import Place
from llm_retriever.data.sources.source_files import SourceFile
from llm_retriever.errors import InputError

ARRAY_OF = re.compile(rb"\s*\[\s*([\[{])")
"""How a file begins that is one array of records; a line that is an array itself begins with a text or a number."""
CHUNK = 1 << 20
LONGEST_RECORD = 1 << 26
"""Characters."""
JSON_HINT = "write one JSON object a line"
ARRAY_HINT = "correct the array, or write one JSON object a line"
WHITE_SPACE = re.compile(r"[ \t\r\n]*")
csv.field_size_limit(LONGEST_RECORD)


def lines(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, str]]:
    """Yields the lines of a UTF-8 text file that are not blank, without their ends; a byte-order mark is dropped.

    Raises:
        InputError: The file is missing or empty, or a line is not UTF-8.
    """
    empty = True
    with _opened(file, bad) as stream:
        for number, raw in enumerate(_readable(stream, file), start=1):
            place = Place(file.shown, number)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                problem = f"not valid UTF-8 (byte {error.start + 1})"
                hint = "save the file as UTF-8"
                bad.set_aside(InputError(problem, file=file.shown, line=number, hint=hint), raw)
                continue
            finally:
                empty = False
            if text.strip():
                yield place, text
    if empty:
        raise InputError("the file is empty", file=file.shown, hint="give the file its lines")


def _opened(file: SourceFile, bad: BadLines) -> IO[bytes]:
    bad.read.add(file.path)
    with _refused(file):
        return gzip.open(file.path, "rb") if file.path.suffix == ".gz" else file.path.open("rb")  # type: ignore[return-value]


def _readable(stream: IO[bytes], file: SourceFile) -> Iterator[bytes]:
    with _refused(file):
        yield from stream


@contextlib.contextmanager
def _refused(file: SourceFile) -> Iterator[None]:
    """Turns a file system's or a packer's errors about a file into errors with a hint."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such file", file=file.shown, hint="add it to the source") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"not a whole gzip file ({error})", file=file.shown, hint="copy it again") from None
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise InputError(problem, file=file.shown, hint="check its permissions and the disk") from None


def records(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the records of a file, one object each; for parquet the line is the row.

    Raises:
        InputError: The file is missing, empty or not of its kind, or a value is not a JSON object.
    """
    for place, value in values(file, bad):
        if isinstance(value, dict):
            yield place, value
        else:
            problem = f"not a JSON object but {type(value).__name__}"
            bad.set_aside(place.error(problem, hint=JSON_HINT), json.dumps(value))


def values(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, Any]]:
    """Yields the values of a file: JSON values by line or by place of an array, rows of parquet or CSV as objects.

    Raises:
        InputError: The file is missing, empty or not of its kind.
    """
    name = file.path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet_records(file, bad)
    if name.endswith(".csv"):
        return _csv_records(file, bad)
    return _array_items(file, bad) if _is_array(file, bad) else _line_values(file, bad)


def _line_values(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, Any]]:
    for place, text in lines(file, bad):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad.set_aside(_not_json(error, place), text)
        else:
            yield place, value


def _not_json(error: Exception, place: Place, hint: str = JSON_HINT) -> InputError:
    reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
    return place.error(f"not valid JSON ({reason})", hint=hint)


def _is_array(file: SourceFile, bad: BadLines) -> bool:
    with _opened(file, bad) as stream, _refused(file):
        match = ARRAY_OF.match(stream.read(4096).removeprefix(b"\xef\xbb\xbf"))
    return bool(match)


def _array_items(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, Any]]:
    """Yields the items of a JSON array, parsed one by one; memory holds the longest of them."""
    with _text_of(file, bad) as stream, _refused(file):
        array = _Array(stream, file)
        array.take("[")
        while True:
            yield array.item()
            if array.take(",]") == "]":
                break
        if array.next_character():
            raise array.error("text behind its end")


class _Array:
    """A JSON array that is read as far as its next item takes."""

    def __init__(self, stream: IO[str], file: SourceFile) -> None:
        self._stream, self._file = stream, file
        self._text, self._at, self._line = "", 0, 1
        self._decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """Returns the next one that is no white space; "" at the end of the file."""
        while True:
            space = WHITE_SPACE.match(self._text, self._at)
            self._go(space.end() if space else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._reads_on():
                return ""

    def take(self, expected: str) -> str:
        """Skips the next character, which is one of those expected."""
        character = self.next_character()
        if not character or character not in expected:
            raise self.error(f"{' or '.join(expected)} was expected" if character else "the file ends within the array")
        self._go(self._at + 1)
        return character

    def item(self) -> tuple[Place, Any]:
        """Returns the next value."""
        self.next_character()
        place = Place(self._file.shown, self._line)
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._reads_on():
                    raise _not_json(error, place, ARRAY_HINT) from None
                continue
            if end == len(self._text) and self._reads_on():  # A number may go on there.
                continue
            self._go(end)
            return place, value

    def error(self, problem: str) -> InputError:
        """Returns an error at the present line."""
        problem = f"not a valid JSON array ({problem})"
        return InputError(problem, file=self._file.shown, line=self._line, hint=ARRAY_HINT)

    def _go(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end

    def _reads_on(self) -> bool:
        """Reads as much as was read already, so that an item of any length is parsed only a few times."""
        size = len(self._text) - self._at
        more = self._stream.read(max(CHUNK, size)) if size < LONGEST_RECORD else ""
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


@contextlib.contextmanager
def _text_of(file: SourceFile, bad: BadLines) -> Iterator[IO[str]]:
    """Opens a file as UTF-8 text without a byte-order mark.

    Raises:
        InputError: It is not UTF-8.
    """
    with _opened(file, bad) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        try:
            yield text
        except UnicodeDecodeError:
            raise InputError("not valid UTF-8", file=file.shown, hint="save the file as UTF-8") from None


def _csv_records(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, dict[str, str]]]:
    """Yields the rows of a CSV file by the names in its header."""
    with _text_of(file, bad) as text, _refused(file):
        rows = csv.reader(text, strict=True)
        try:
            header = [name.strip() for name in next(rows, [])]
            if not any(header):
                raise InputError("the file is empty", file=file.shown, hint="give the file its lines")
            _check_names(header, file, line=1)
            for row in rows:
                place = Place(file.shown, rows.line_num)
                if len(row) == len(header):
                    yield place, dict(zip(header, row, strict=True))
                elif any(row):
                    problem = f"{len(row)} columns where the header has {len(header)}"
                    hint = "put texts that hold commas or line ends into double quotes"
                    bad.set_aside(InputError(problem, file=file.shown, line=place.line, hint=hint), row)
        except csv.Error as error:
            raise InputError(
                f"not valid CSV ({error})", file=file.shown, line=rows.line_num, hint="write the file anew"
            ) from None


def _check_names(names: list[str], file: SourceFile, line: int | None = None) -> None:
    """Raises InputError for columns of the same name, of which a record could hold one only."""
    if len(set(names)) < len(names):
        problem = f"several columns are called alike: {', '.join(names)}"
        raise InputError(problem, file=file.shown, line=line, hint="give every column a name of its own")


def _parquet_records(file: SourceFile, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "reading parquet needs pyarrow",
            file=file.shown,
            hint="install llm-retriever[hub], or convert to JSON lines",
        ) from None
    bad.read.add(file.path)
    number = 0
    with _refused(file), _whole_parquet(file), parquet.ParquetFile(file.path, page_checksum_verification=True) as table:
        _check_names(table.schema_arrow.names, file)
        for batch in table.iter_batches(batch_size=1024):
            place = Place(file.shown, number + 1)
            columns = [_python_values(name, batch.column(i), place) for i, name in enumerate(batch.schema.names)]
            for record in zip(*columns, strict=True):
                number += 1
                yield Place(file.shown, number), dict(zip(batch.schema.names, record, strict=True))
    if not number:
        raise InputError("the file is empty", file=file.shown, hint="give the file its rows")


@contextlib.contextmanager
def _whole_parquet(file: SourceFile) -> Iterator[None]:
    """Turns pyarrow's errors about damage into errors with a hint; a file system's own have a number and pass."""
    import pyarrow as arrow

    try:
        yield
    except (arrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = str(error).partition("\n")[0]
        raise InputError(f"not a whole parquet file ({first})", file=file.shown, hint="copy it again") from None


def _python_values(name: str, column: Any, place: Place) -> list[Any]:
    """Converts a column of a batch, whose first row is at `place`; dates that Python cannot hold become None.

    Raises:
        InputError: A text is not UTF-8, or dates within lists or objects cannot be held.
    """
    from pyarrow import types

    rows = f"one of the {len(column):,} rows from {place.line:,} on"
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        problem = f"a text in {rows} is not valid UTF-8"
        raise InputError(problem, file=place.file, field=name, hint="write the file anew") from None
    except (ValueError, OverflowError) as error:
        if types.is_temporal(column.type):  # No layout reads one.
            return [None] * len(column)
        problem = f"a value in {rows} cannot be read ({error})"
        raise InputError(
            problem, file=place.file, field=name, hint="leave the column out, or write it as text"
        ) from None
