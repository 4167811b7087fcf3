"""Which files hold training examples, and of which split: shared by the layouts that have them query by query."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.reading import NO_DATA, SUFFIXES, BadLines, SourceFile, values
from llm_retriever.errors import InputError

CORPUS = re.compile(r"(^|[-_.])(corpus|collection)([-_.]|$)")
SPLITS = {
    "train": "train",
    "training": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
}


def files_with_records(directory: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """JSON, CSV and parquet files in a directory and its folders, by name; hidden ones and cards are left out."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.name.endswith(suffixes))
    return sorted(path for path in found if not any(map(NO_DATA.fullmatch, path.relative_to(directory).parts)))


def is_corpus(path: Path, directory: Path) -> bool:
    """Whether a file is a corpus by its name or its folder's."""
    return any(CORPUS.search(part.lower()) for part in path.relative_to(directory).parts)


def split_of(path: Path, directory: Path) -> str:
    """The split that a file's name tells (``train-00000-of-00002.parquet``, ``test/1.jsonl``), else train."""
    words = re.split(r"[-_./]", path.relative_to(directory).as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "train")


def source_file(path: Path, directory: Path, shown: str) -> SourceFile:
    """The file, with the name its owner knows it by."""
    return SourceFile(path, f"{shown}/{path.relative_to(directory).as_posix()}")


def first_record(path: Path) -> dict[str, Any]:
    """The first record of a file, to recognise a layout by its fields; empty where it is none."""
    value = first_value(path)
    return value if isinstance(value, dict) else {}


def first_value(path: Path) -> Any:
    """The first value of a file; None where it cannot be read."""
    try:
        return next((value for _, value in values(SourceFile(path, path.name), BadLines(0, path))), None)
    except InputError:
        return None
