"""`demo:python-docs`: a collection made on the spot from the documentation strings of Python and installed packages.

A passage is a qualified name (its title), a signature and the body of the documentation string; its query is the summary
sentence, which the passage does not contain. What has no sentence fit for a query stays as a passage without query.
Near-duplicates are removed, and splits are made of whole modules and packages, so that nothing leaks between them.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm_retriever.data.sources.bad_lines import BadLines
from llm_retriever.data.sources.docstrings import Documented, documented
from llm_retriever.data.sources.near_duplicates import NearDuplicates
from llm_retriever.data.sources.rows import JudgmentRow, PassageRow, Place, QueryRow, Row, normalise
from llm_retriever.files.code_digest import installed_versions
from llm_retriever.progress import Progress

URI = "demo:python-docs"
EDITION = "1"
LICENCE = "documentation of Python (PSF-2.0) and of the packages under 'versions', each under its own licence"
# Read in this order until there are enough passages; what is not installed is left out.
PACKAGES = (
    "huggingface_hub",
    "pydantic",
    "jinja2",
    "werkzeug",
    "flask",
    "click",
    "requests",
    "urllib3",
    "boto3",
    "numpy",
    "scipy",
    "pandas",
    "networkx",
    "torch.nn",
    "torch.optim",
    "torch.distributions",
    "matplotlib",
    "statsmodels",
    "sympy",
)
ENOUGH_PASSAGES = 9_000
MOST_OF_A_PACKAGE = 1_600
LARGEST_EVALUATION_GROUP = 120
EVALUATION_QUERIES = {"test": 600, "dev": 400}
SHARE_WITHOUT_QUERY = 0.25
NOT_DOCUMENTATION = {
    "test",
    "tests",
    "testing",
    "conftest",
    "distutils",
    "v1",
    "idlelib",
    "idle_test",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
    "encodings",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
    "_distutils_hack",
    "_examples",
    "_testing",
    "_vendor",
    "_vendored",
    "_external",
    "_lib",
    "vendor",
    "vendored",
    "packages",
    "externals",
    "third_party",
    "extern",
    "contrib",
    "benchmarks",
    "examples",
    "this",
    "antigravity",
    "sandbox",
}


class Entry(NamedTuple):
    """Something documented, and the module or package whose split it shares."""

    group: str
    thing: Documented

    def text(self) -> str:
        """Text of the passage: signature and body; the summary only where it is no query."""
        summary = "" if self.thing.makes_a_query else self.thing.summary
        return normalise(
            " ".join(part for part in (self.thing.signature.rstrip(" …") + ".", summary, self.thing.body) if part)
        )


def versions() -> dict[str, str]:
    """Versions of what the collection is made of: Python and the installed ones of `PACKAGES`."""
    names = dict.fromkeys(package.partition(".")[0] for package in PACKAGES)
    return {"edition": EDITION, "python": platform.python_version()} | installed_versions(names)


def rows(bad: BadLines) -> Iterator[Row]:
    """Yields the rows of the collection; the same for the same versions."""
    entries = _entries()
    split = _splits(entries)
    for number, entry in enumerate(entries, start=1):
        place, name = Place(URI, number), entry.thing.name
        yield PassageRow(place, name, name, entry.text())
        if entry.thing.makes_a_query:
            query_id = f"q:{name}"
            yield QueryRow(place, query_id, normalise(entry.thing.summary))
            yield JudgmentRow(place, split[entry.group], query_id, name, 1)


def _entries() -> list[Entry]:
    entries: list[Entry] = []
    summaries = NearDuplicates(shingle=1, similarity=0.75)
    passages = NearDuplicates(shingle=3, similarity=0.5)
    with _no_garbage_collection(), Progress("read documentation", ENOUGH_PASSAGES, "passages") as progress:
        for package in ("", *PACKAGES):
            for entry in _selection(list(_of_package(package))):
                summary, body = entry.thing.summary, entry.thing.body
                if summaries.adds(summary or body) and passages.adds(f"{summary} {body}"):
                    entries.append(entry)
            progress.update(len(entries) - progress.done)
            if len(entries) >= ENOUGH_PASSAGES:
                break
    return entries


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Syntax trees have no cycles; looking for some in them takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _selection(entries: list[Entry]) -> list[Entry]:
    """Draws a package's share of the collection by name: mostly what makes queries, and not too much of one package."""
    entries = list({entry.thing.name: entry for entry in reversed(entries)}.values())[::-1]
    asked = _drawn([entry for entry in entries if entry.thing.makes_a_query], MOST_OF_A_PACKAGE)
    others = [entry for entry in entries if not entry.thing.makes_a_query and len(entry.text().split()) >= 8]
    names = {entry.thing.name for entry in asked}
    names |= {
        entry.thing.name
        for entry in _drawn(others, round(len(asked) * SHARE_WITHOUT_QUERY / (1 - SHARE_WITHOUT_QUERY)))
    }
    return [entry for entry in entries if entry.thing.name in names]


def _drawn(entries: list[Entry], number: int) -> list[Entry]:
    return sorted(entries, key=lambda entry: _draw(entry.thing.name))[:number]


def _draw(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _of_package(package: str) -> Iterator[Entry]:
    """Lists the documented things of a package, or of the standard library (``""``)."""
    top, _, inner = package.partition(".")
    root = _root(top)
    if root is None:
        return
    start = root / inner.replace(".", "/") if inner else root
    for path in _python_files(start):
        module = _public_name(top, path.relative_to(root))
        if module:
            group = module.partition(".")[0]
            with contextlib.suppress(SyntaxError, ValueError):
                for thing in documented(path.read_text(encoding="utf-8"), module):
                    yield Entry(group, thing)


def _public_name(top: str, path: Path) -> str:
    """Name of a file's module without its private parts, behind which public names are often implemented."""
    parts = path.with_suffix("").parts
    if parts[-1] in NOT_DOCUMENTATION or parts[-1].startswith("test_") or (not top and parts[0].startswith("_")):
        return ""
    return ".".join(part for part in (top, *parts) if part and not part.startswith("_"))


def _root(top: str) -> Path | None:
    """Directory of the standard library or a package; a package is located, not imported."""
    if not top:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(top)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _python_files(start: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(start):
        folders[:] = sorted(n for n in folders if n not in NOT_DOCUMENTATION and not n.startswith("."))
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(directory) / name


def _splits(entries: list[Entry]) -> dict[str, str]:
    """Assigns splits by group: groups are drawn for test, then for dev, until these have their queries; the rest trains."""
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.group] = sizes.get(entry.group, 0) + entry.thing.makes_a_query
    split = dict.fromkeys(sizes, "train")
    drawn = sorted((group for group, size in sizes.items() if 0 < size <= LARGEST_EVALUATION_GROUP), key=_draw)
    for name, target in EVALUATION_QUERIES.items():
        filled = 0
        while drawn and filled < target:
            group = drawn.pop(0)
            if filled + sizes[group] <= target * 1.05:
                split[group] = name
                filled += sizes[group]
    return split
