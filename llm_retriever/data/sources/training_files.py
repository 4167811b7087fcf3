"""Finds the files that hold training examples, and their splits: for the layouts that have them query by query."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.reading import values
from llm_retriever.data.sources.source_files import NO_DATA, SUFFIXES, SourceFile
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
    """Lists JSON, CSV and parquet files in a directory and its folders, by name, without hidden ones and cards."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name.endswith(suffixes))
    return sorted(path for path in paths if not any(map(NO_DATA.fullmatch, path.relative_to(directory).parts)))


def is_corpus(path: Path, directory: Path) -> bool:
    """Whether a file is a corpus by its name or its folder's."""
    return any(CORPUS.search(part.lower()) for part in path.relative_to(directory).parts)


def split_of(path: Path, directory: Path) -> str:
    """Split in a file's name (``train-00000-of-00002.parquet``, ``test/1.jsonl``), else train."""
    words = re.split(r"[-_./]", path.relative_to(directory).as_posix().lower())
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), "train")


def first_record(path: Path) -> dict[str, Any]:
    """Reads the first record of a file, to recognise a layout by its fields; empty where it has none."""
    value = first_value(path)
    return value if isinstance(value, dict) else {}


def first_value(path: Path) -> Any:
    """Reads the first value of a file; None where it cannot be read."""
    try:
        return next((value for _, value in values(SourceFile(path, path.name), BadLines(0, path))), None)
    except InputError:
        return None
