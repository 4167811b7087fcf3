"""The files of a source by their names: what can be read, what is named where it was not, and what lacks a part."""

from __future__ import annotations

import functools
import re
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from llm_retriever.errors import InputError

SUFFIXES = (
    *(f".{name}{gz}" for name in ("jsonl", "ndjson", "jsonlines", "json", "csv") for gz in ("", ".gz")),
    ".parquet",
)
TABLES = tuple(name + gz for name in (".tsv", ".txt", ".trec", ".qrels") for gz in ("", ".gz"))
"""Endings of files whose columns are separated by tabs or other white space."""
NO_DATA = re.compile(r"(readme|licen[cs]e|notice|citation|dataset_infos?)(\..*)?|\..*", re.IGNORECASE)
"""Names of hidden files and folders, and of those that are for people."""
NOT_READ = re.compile(
    r"(makefile|dockerfile|authors|changelog|contributing|copying|_success)"
    r"|.*\.(md|rst|pdf|docx?|tex|bib|html?|css|js|py|ipynb|sh|bat|ps1|ya?ml|toml|cfg|ini|lock|log|sum|md5|sha\d*|crc|sig|asc"
    r"|png|jpe?g|gif|svg|webp|ico)",
    re.IGNORECASE,
)
"""Names of files that hold neither passages nor queries nor judgments, unless their name says so."""
OF_A_SOURCE = re.compile(r"(corpus|queries|collection).*|.*qrel.*", re.IGNORECASE)
PART = re.compile(r"(?P<set>.*-)(?P<number>\d{2,})-of-(?P<parts>\d{2,})(?P<rest>\D.*)?")
"""Name of one of several files that are read as one."""


class SourceFile(NamedTuple):
    """A file of a source: its present path, and its owner's name for it (they differ for a copy from s3://)."""

    path: Path
    shown: str


def source_file(path: Path, directory: Path, shown: str) -> SourceFile:
    """Names a file as its owner knows it.

    Raises:
        InputError: It is a part of several (``train-00000-of-00002.parquet``), and another part is missing.
    """
    _check_parts(path, f"{shown}/{path.relative_to(directory).parent.as_posix()}/".replace("/./", "/"))
    return SourceFile(path, f"{shown}/{path.relative_to(directory).as_posix()}")


def _check_parts(path: Path, folder: str) -> None:
    """Raises InputError where not all parts lie in the folder; they are counted from 0, or from 1 as some tools do."""
    part = PART.fullmatch(path.name)
    if part is None:
        return
    found = _numbers(path.parent, path.parent.stat().st_mtime_ns, part["set"], part["parts"])
    parts, first = int(part["parts"]), int(int(part["parts"]) in found)
    missing = next((number for number in range(first, first + parts) if number not in found), None)
    if missing is not None:
        name = f"{part['set']}{missing:0{len(part['number'])}}-of-{part['parts']}"
        problem = f"no such file, and {path.name} is one of {parts:,} parts"
        raise InputError(problem, file=f"{folder}{name}", hint="copy all parts, or rename one that is all there is")


@functools.lru_cache(maxsize=64)
def _numbers(folder: Path, changed: int, of: str, parts: str) -> frozenset[int]:
    """Numbers of the parts of a set in a folder, looked at once for all of them; `changed` = when the folder was."""
    names = (other.name for other in folder.iterdir() if other.name.endswith((*SUFFIXES, *TABLES)))
    others = (other for name in names if (other := PART.fullmatch(name)))
    return frozenset(int(other["number"]) for other in others if (other["set"], other["parts"]) == (of, parts))


def unread(directory: Path, read: Container[Path]) -> list[str]:
    """Names of the files in a directory and its folders that may be data and were not opened, relative to it."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path not in read and path.is_file())
    return sorted(path.as_posix() for path in paths if _may_be_data(path))


def _may_be_data(path: Path) -> bool:
    """Whether a file's name or folder says that it belongs to the source, or nothing says that it does not."""
    if any(map(NO_DATA.fullmatch, path.parts)):
        return False
    return any(map(OF_A_SOURCE.fullmatch, path.parts)) or not NOT_READ.fullmatch(path.name)
