"""Digest of the code: results that outlive a run are reused only by the code that made them."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


@functools.cache
def code_digest(*folders: Path) -> str:
    """SHA-256 (hex) over Python's version and the modules and templates of some packages.

    Args:
        folders: Folders of the packages; none = the library alone.
    """
    hashed = hashlib.sha256(sys.version.encode())
    for folder in folders or (PACKAGE,):
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".py", ".jinja"}:
                hashed.update(path.relative_to(folder.parent).as_posix().encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()
