"""The seal of an output: a file that names every other file with its checksum, so that no later step trusts a damaged one.

It is written when an output is complete, in the format of `sha256sum`, and compared when a step reads the output. Vectors, ids
and passages of an index are left to its manifest. What was written before there were seals, or by hand, has none and is taken
as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files.checksums import sha256_of_large_file
from llm_retriever.files.drafts import is_draft

SEAL = "SHA256SUMS"
LEFT_OUT = ("vectors-*.npy", "ids-*.txt", "index.faiss", "passages.npy")
"""Of an index, whose manifest has their checksums."""
HINT = f"fetch it again, make it anew with the step that wrote it, or delete {SEAL} if you changed it on purpose"
_LINE = re.compile(r"(?P<checksum>[0-9a-f]{64}) [ *](?P<name>[^\0]+)")


def write_seal(directory: Path) -> None:
    """Seals a complete directory; a seal that was there is replaced."""
    sums = {name: sha256_of_large_file(directory / name) for name in sorted(_names(directory))}
    files.write_text(directory / SEAL, "".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))


def check_seal(directory: Path) -> None:
    """Compares a directory with its seal; one without a seal is fine, and so are files beyond it.

    Raises:
        InputError: A file is missing or has other bytes, or the seal itself is damaged.
    """
    for name, checksum in (checksums_of(directory) or {}).items():
        path = directory / name
        if not path.is_file():
            raise InputError("is missing", file=path, hint=HINT)
        if sha256_of_large_file(path) != checksum:
            raise InputError(f"does not have the checksum that {SEAL} says", file=path, hint=HINT)


def checksums_of(directory: Path) -> dict[str, str] | None:
    """Reads the checksums of a directory's files by their relative names; None where it has no seal.

    Raises:
        InputError: The seal is damaged.
    """
    path = directory / SEAL
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = [_LINE.fullmatch(line) for line in lines[:-1]]
    if lines[-1] or not found:
        raise InputError("is cut off", file=path, hint=HINT)
    for number, line in enumerate(found, 1):
        if line is None or Path(line["name"]).is_absolute() or ".." in Path(line["name"]).parts:
            raise InputError("is no checksum and name", file=path, line=number, hint=HINT)
    return {line["name"]: line["checksum"] for line in found if line}


def _names(directory: Path) -> Iterator[str]:
    """Yields relative names of the files to seal."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory)
        # What is deleted while it is open stays on NFS under such a name for a while.
        passing = any(is_draft(part) or part.startswith(".nfs") for part in name.parts)
        outside = passing or path.is_dir() or str(name) == SEAL
        if not outside and not is_left_out(path.name):
            yield name.as_posix()


def is_left_out(name: str) -> bool:
    """Whether a file of this name is left to the checksums of an index."""
    return any(fnmatch(Path(name).name, pattern) for pattern in LEFT_OUT)
