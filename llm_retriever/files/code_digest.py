"""What results were made by: a digest of the code, by which alone what outlives a run is reused, and versions of packages."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable
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


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages; those not installed are omitted."""
    versions = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
