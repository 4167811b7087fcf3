"""The kinds of rows that every source is read into: normalised, checked one by one, with their place in the source.

What concerns several rows together (ids that repeat, judgments of unknown passages) is checked in
`llm_retriever.data.preparation`.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from llm_retriever.errors import InputError

# Not those from 0x80 on: MS MARCO has thousands of wrongly decoded quotation marks, which models have learned from.
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
NOT_IN_AN_ID = re.compile(r"[\s\x00-\x1f\x7f-\x9f]")
LONGEST_ID = 32_766
"""Bytes in UTF-8 of Lucene's longest term (`IndexWriter.MAX_TERM_LENGTH`); a passage whose id is longer is not indexed."""
ID_BYTES = 10
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class EmptyTextError(InputError):
    """Nothing is left of a text."""


class Place(NamedTuple):
    """Place of a row in its source: a file as its owner knows it, and a 1-based line."""

    file: str
    line: int

    def error(self, problem: str, *, field: str | None = None, hint: str = "") -> InputError:
        """Builds the error about a row of this place; arguments are those of `InputError`."""
        return InputError(problem, file=self.file, line=self.line, field=field, hint=hint)


@functools.lru_cache(maxsize=1024)
def plain(name: str) -> str:
    """Strips a column's name of letter case and punctuation: `Corpus-ID` is `corpusid`."""
    return "".join(character for character in name.lower() if character.isalnum())


PASSAGE_IDS = ("id", "docid", "docno", "documentid", "corpusid", "passageid", "pid", "did")
QUERY_IDS = ("id", "queryid", "qid", "topicid")
"""What the column of ids is called, as `plain` leaves it; `_id` goes before all."""


def id_field(record: Iterable[str], names: tuple[str, ...]) -> str:
    """Name of the field that holds a record's id; `_id` where there is none."""
    if "_id" in record:
        return "_id"
    by_plain = {plain(name): name for name in record}
    return next((by_plain[name] for name in names if name in by_plain), "_id")


class PassageRow(NamedTuple):
    """A passage; `may_repeat` where the format writes the same passage once per query that needs it."""

    place: Place
    id: str
    title: str
    text: str
    may_repeat: bool = False

    def content(self) -> bytes:
        """16 bytes that are the same for passages of the same title and text."""
        return hashlib.blake2b(f"{self.title}\n{self.text}".encode(), digest_size=16).digest()


class QueryRow(NamedTuple):
    """A query; `may_repeat` where the format may write it more than once."""

    place: Place
    id: str
    text: str
    may_repeat: bool = False


class JudgmentRow(NamedTuple):
    """How relevant a passage is to a query: 0 or less = not, 1 and more = relevant, to that grade."""

    place: Place
    split: str
    query_id: str
    passage_id: str
    grade: int


class TeacherRow(NamedTuple):
    """A teacher's score of a passage for a query, as of a cross-encoder, in its own unit."""

    place: Place
    query_id: str
    passage_id: str
    score: float


Row = PassageRow | QueryRow | JudgmentRow | TeacherRow


def normalise(text: str) -> str:
    """Brings a text to Unicode NFC, makes ASCII control characters spaces, every run of white space one space, and strips it.

    Example:
        >>> normalise(" cafe\\u0301\\tau\\nlait ")
        'café au lait'
    """
    text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = CONTROL.sub(" ", text)
    return " ".join(text.split())


def content_id(kind: str, *texts: str) -> str:
    """Makes an id of content, so that the same text has the same id in every line and every run.

    Args:
        kind: ``p`` for passages, ``q`` for queries.
        *texts: Normalised.
    """
    return kind + hashlib.blake2b("\n".join(texts).encode(), digest_size=ID_BYTES).hexdigest()


def passage_row(
    record: dict[str, Any],
    place: Place,
    *,
    text_field: str = "text",
    may_repeat: bool = False,
) -> PassageRow:
    """Parses the passage in a record; one without an id gets one of its content, and may come again.

    Raises:
        InputError: Id, title or text cannot be used.
    """
    title = title_of(record, place)
    text = text_of(record, text_field, place, title)
    field = id_field(record, PASSAGE_IDS)
    if record.get(field) is None:
        # As a passage of a layout without titles and ids: the same text is the same passage there.
        return PassageRow(place, content_id("p", *filter(None, (title, text))), title, text, True)
    return PassageRow(place, identifier(record, field, place), title, text, may_repeat)


def identifier(record: dict[str, Any], field: str, place: Place) -> str:
    """Parses the id in a field of a record; a whole number counts as its digits.

    Raises:
        InputError: It is missing, of another type, empty, or would break the columns of a TREC run.
    """
    value = _present(record, field, place)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _wrong_type(value, "a text", field, place)
    return checked_id(value, field, place)


def checked_id(value: str, field: str, place: Place) -> str:
    """Returns the id itself, when it can stand in a TREC run.

    Raises:
        InputError: It is empty, too long for Lucene, or holds white space, control characters or half a character.
    """
    if not value:
        raise place.error("the id is empty", field=field, hint="give it an id")
    if 4 * len(value) > LONGEST_ID:
        _check_length(value, field, place)
    if NOT_IN_AN_ID.search(value):
        raise place.error(
            f"the id {value!r} holds white space or control characters",
            field=field,
            hint="write ids without them: a TREC run separates its columns by white space",
        )
    if not value.isprintable():
        _check_encodable(value, field, place)
    return value


def text_of(record: dict[str, Any], field: str, place: Place, title: str = "") -> str:
    """Returns the normalised text in a field of a record; beside a title it may be empty, as in TREC-COVID.

    Raises:
        InputError: It is missing, not a text, or empty without a title.
    """
    value = _present(record, field, place)
    if not isinstance(value, str):
        raise _wrong_type(value, "a text", field, place)
    return "" if title and not normalise(value) else checked_text(value, field, place)


def checked_text(value: str, field: str, place: Place) -> str:
    """Returns the text normalised.

    Raises:
        InputError: Nothing is left, or it holds half a character.
    """
    text = normalise(value)
    if not text:
        raise EmptyTextError(
            "the text is empty",
            file=place.file,
            line=place.line,
            field=field,
            hint="remove the line or give it a text",
        )
    if not text.isprintable():
        _check_encodable(text, field, place)
    return text


def title_of(record: dict[str, Any], place: Place, field: str = "title") -> str:
    """Returns the normalised title of a record; missing, null and ``-`` mean that there is none.

    Raises:
        InputError: It is there and not a text.
    """
    value = record.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong_type(value, "a text", field, place)
    title = normalise(value)
    if not title.isprintable():
        _check_encodable(title, field, place)
    return "" if title == "-" else title


def checked_split(name: str, file: str) -> str:
    """Returns the name of a split, when it can be a file name.

    Raises:
        InputError: It cannot.
    """
    if not SPLIT_NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a split", file=file, hint="name the file with letters, digits, '.', '_' and '-'"
        )
    return name


def _present(record: dict[str, Any], field: str, place: Place) -> Any:
    if record.get(field) is None:
        raise place.error(
            "the field is missing",
            field=field,
            hint=f"add it; the record has {', '.join(sorted(map(str, record))) or 'no fields'}",
        )
    return record[field]


def _wrong_type(value: Any, expected: str, field: str, place: Place) -> InputError:
    return place.error(f"must be {expected}, not {type(value).__name__}", field=field, hint="correct it")


def _check_length(value: str, field: str, place: Place) -> None:
    length = len(value.encode("utf-8", "surrogatepass"))
    if length > LONGEST_ID:
        raise place.error(
            f"the id {value[:20]!r}… has {length:,} bytes; Lucene, which BM25 is searched with, holds at most {LONGEST_ID:,}",
            field=field,
            hint="give it a shorter one",
        )


def _check_encodable(text: str, field: str, place: Place) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise place.error(
            "holds half a character (a lone surrogate)", field=field, hint="write the character whole"
        ) from None
