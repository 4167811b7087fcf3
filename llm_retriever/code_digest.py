"""Which code this is: results that outlive a run are taken only by the code that made them."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent


@functools.cache
def code_digest() -> str:
    """SHA-256 (hex) over the library's modules and templates, and Python's version."""
    hashed = hashlib.sha256(sys.version.encode())
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in {".py", ".jinja"}:
            hashed.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()
