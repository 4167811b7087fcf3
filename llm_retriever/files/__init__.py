"""Writes files so that nothing is ever half there, and computes digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from llm_retriever.errors import InputError
from llm_retriever.files import drafts

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty directory beside `path` that becomes `path` when the block ends without an exception.

    An existing `path` is replaced. When the block raises, the temporary directory is removed and `path` stays as it was.
    What a killed process has left of the same `path` is removed first.
    """
    with _draft_of(Path(path)) as draft:
        draft.mkdir()
        yield draft
        put_in_place(draft, Path(path))


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path`; what is written there becomes `path` when the block ends without an exception.

    What a killed process has left of the same `path` is removed first.
    """
    with _draft_of(Path(path)) as draft:
        yield draft
        os.replace(draft, path)


@contextlib.contextmanager
def _draft_of(path: Path) -> Iterator[Path]:
    """Yields a free temporary name beside `path`, whose directory exists then; nothing is left of it afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafts.drafting(path) as token:
        draft = drafts.draft_of(path, token)
        try:
            yield draft
        finally:
            drafts.remove(draft)


def link_tree(source: str | Path, target: str | Path) -> None:
    """Copies a directory by hard links, or by copies where the file system has none; `target` may be there, empty."""
    shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Copies a file by a hard link, or by a copy where the file system has none."""
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def put_in_place(draft: Path, path: Path) -> None:
    """Renames a complete directory to `path`; what was there is renamed first, because removing it may be interrupted."""
    with drafts.drafting(path) as token:
        aside = drafts.draft_of(path, token, drafts.REPLACED)
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, aside)
        try:
            os.replace(draft, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.replace(aside, path)
            raise
        drafts.remove(aside)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 `text` to `path` atomically."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, *, hint: str = "") -> Any:
    """Reads a JSON file.

    Raises:
        InputError: The file is missing, cannot be read, is not valid JSON or holds numbers that are not finite; `hint` tells
            what to do about it.
    """
    path = Path(path)
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file", file=path, hint=hint) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=path, hint=hint) from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"not valid JSON ({error})", file=path, line=line, hint=hint) from None


def parse_json(text: str | bytes) -> Any:
    """Parses JSON that can be written again: ValueError for numbers that are not finite, and for half characters."""
    value = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    if _SURROGATE.search(text if isinstance(text, str) else text.decode()):
        json.dumps(value, ensure_ascii=False).encode()
    return value


def checked(shape: TypeAdapter[Any], content: Any, file: str | Path, *, hint: str = "") -> Any:
    """Validates the content of a JSON file, and returns it in the shape that its readers rely on.

    Raises:
        InputError: It names the first field that is missing or of another type.
    """
    try:
        return shape.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or None
        raise InputError(first["msg"], file=file, field=field, hint=hint) from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`: the same content has the same digest on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mapped_array(path: str | Path) -> Any:
    """Maps the array of a `.npy` file; ValueError, OSError or EOFError where the file is none."""
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (SyntaxError, tokenize.TokenError, MemoryError, OverflowError) as error:
        # numpy parses the header as Python.
        raise ValueError(f"its header is damaged: {error}") from None
