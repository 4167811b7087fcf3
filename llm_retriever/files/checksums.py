"""Checksums of large files, computed once for each content and remembered, in this process and for the next ones.

A checksum is known by path, size, inode and times of a file. It is computed anew for a file that was changed moments ago,
because times are coarse, and everywhere if the environment variable `LLM_RETRIEVER_VERIFY` is 1. What is remembered lies in
`checksums.json` in `$XDG_CACHE_HOME/llm-retriever` or `~/.cache/llm-retriever`; where nothing can be written, nothing is
remembered. It guards against mistakes, as weights of another model in a directory; it is no protection from somebody who
may write there.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from llm_retriever import files

VERIFY = "LLM_RETRIEVER_VERIFY"
"""Environment variable: 1 = trust no remembered checksum."""
CACHE_FILE = "checksums.json"
LARGE = 16 << 20
"""Bytes from which on it pays to remember."""
SETTLED_SECONDS = 3.0
"""Changes within so short a time may not show in a file's times."""
ENTRIES = 1000
_known: dict[str, str] = {}


def sha256_of_large_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes, as remembered if it was read before and has not changed since."""
    path = Path(path).resolve()
    key = _key(path)
    if key is None or os.environ.get(VERIFY) == "1":
        return files.sha256_of_file(path)
    if key not in _known:
        _known.update(_remembered())
    if key not in _known:
        checksum = files.sha256_of_file(path)
        if _key(path) != key:
            return checksum  # It changed while it was read.
        _remember(key, checksum)
    return _known[key]


def _key(path: Path) -> str | None:
    """Identifies a file's content; None if that is not worth it, or it was changed moments ago."""
    status = path.stat()
    changed = max(status.st_mtime, status.st_ctime)
    if status.st_size < LARGE or time.time() - changed < SETTLED_SECONDS:
        return None
    numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)
    return ":".join([*map(str, numbers), str(path)])


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "llm-retriever" / CACHE_FILE


def _remembered() -> dict[str, str]:
    try:
        content = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(key: str, checksum: str) -> None:
    """Keeps a checksum; of two processes that do at the same time one may be forgotten, and is computed again."""
    _known[key] = checksum
    # A home that cannot be written to, or that does not exist, is common in containers.
    with contextlib.suppress(OSError, RuntimeError):
        content = _remembered()
        content.pop(key, None)
        kept = dict(list(content.items())[1 - ENTRIES :])
        files.write_json(_cache(), kept | {key: checksum})
