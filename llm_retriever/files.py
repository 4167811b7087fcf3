"""Writing so that nothing is ever half there, and the digests that say what something is."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields an empty directory beside `path` that becomes `path` when the block ends without an exception.

    An existing `path` is replaced. When the block raises, the temporary directory is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path`; what is written there becomes `path` when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def link_tree(source: str | Path, target: str | Path) -> None:
    """Gives a directory a second name: by hard links, or copies where the file system has none; `target` may be there, empty."""
    shutil.copytree(source, target, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def remove_drafts(path: str | Path, process: int) -> None:
    """Removes what a process that was killed while it wrote `path`, or something on the way to it, has left beside it.

    Args:
        path: As it was given to `atomic_directory` or `atomic_file`.
        process: Its process id; it must have ended.
    """
    path = Path(path)
    name = glob.escape(path.name)
    for pattern in (f".{name}.{process}.partial*", f"..{name}.*.{process}.partial*"):
        for draft in path.parent.glob(pattern):
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 `text` to `path` atomically."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON to `path` atomically; NaN and infinity are refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, *, mend: str = "") -> Any:
    """Reads a JSON file.

    Raises:
        InputError: The file is missing or is not valid JSON; `mend` tells what to do about it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("no such file", file=path, mend=mend) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"not valid JSON ({error})", file=path, line=line, mend=mend) from None


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`: the same content has the same digest on every machine."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in constant memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
