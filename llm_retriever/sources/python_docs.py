"""`demo:python-docs`: a collection made on the spot from the documentation strings of Python and installed packages.

A passage is a qualified name (its title), a signature and the body of the documentation string; its query is the summary
sentence, which the passage does not contain. What has no sentence fit for a query stays as a passage without query.
Near-duplicates are removed, and splits are made of whole modules and packages, so that nothing leaks between them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm_retriever.progress import Progress
from llm_retriever.sources.docstrings import Documented, documented
from llm_retriever.sources.near_duplicates import first_of_each
from llm_retriever.sources.reading import BadLines
from llm_retriever.sources.rows import JudgmentRow, PassageRow, Place, QueryRow, Row, normalise

URI = "demo:python-docs"
EDITION = "1"
LICENCE = "documentation of Python (PSF-2.0) and of the packages under 'versions', each under its own licence"
# Read in this order until there are enough passages; what is not installed is left out.
PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "networkx",
    "matplotlib",
    "torch.nn",
    "torch.optim",
    "torch.distributions",
    "torch.utils",
    "huggingface_hub",
    "pydantic",
    "jinja2",
    "werkzeug",
    "flask",
    "click",
    "requests",
    "urllib3",
    "boto3",
    "statsmodels",
    "sympy",
)
ENOUGH_PASSAGES = 10_000
MOST_OF_A_PACKAGE = 1_600
LARGEST_EVALUATION_GROUP = 120
EVALUATION_QUERIES = {"test": 600, "dev": 400}
SHARE_WITHOUT_QUERY = 0.25
NOT_DOCUMENTATION = {
    "test",
    "tests",
    "testing",
    "conftest",
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
        """The passage: signature and body; the summary only where it is no query."""
        summary = "" if self.thing.makes_a_query() else self.thing.summary
        return normalise(" ".join(part for part in (self.thing.signature + ".", summary, self.thing.body) if part))


def versions() -> dict[str, str]:
    """What the collection is made of: Python and the installed ones of `PACKAGES`, with their versions."""
    found = {"edition": EDITION, "python": platform.python_version()}
    for name in dict.fromkeys(package.partition(".")[0] for package in PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def rows(bad: BadLines) -> Iterator[Row]:
    """The rows of the collection; the same for the same versions."""
    entries = _entries()
    split = _splits(entries)
    for number, entry in enumerate(entries, start=1):
        place, name = Place(URI, number), entry.thing.name
        yield PassageRow(place, name, name, entry.text())
        if entry.thing.makes_a_query():
            query_id = f"q:{name}"
            yield QueryRow(place, query_id, normalise(entry.thing.summary))
            yield JudgmentRow(place, split[entry.group], query_id, name, 1)


def _entries() -> list[Entry]:
    found: list[Entry] = []
    with Progress("read documentation", total=ENOUGH_PASSAGES, unit="passages") as progress:
        for package in ("", *PACKAGES):
            found = _distinct(found + _selection(list(_of_package(package))))
            progress.update(len(found) - progress.done)
            if len(found) >= ENOUGH_PASSAGES:
                break
    return found


def _selection(entries: list[Entry]) -> list[Entry]:
    """A package's share of the collection, drawn by name: mostly what makes queries, and not too much of one package."""
    entries = list({entry.thing.name: entry for entry in reversed(entries)}.values())[::-1]
    asked = _drawn([entry for entry in entries if entry.thing.makes_a_query()], MOST_OF_A_PACKAGE)
    others = [entry for entry in entries if not entry.thing.makes_a_query() and len(entry.text().split()) >= 8]
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


def _distinct(entries: list[Entry]) -> list[Entry]:
    """Without those whose summary, or whose passage, is nearly that of an earlier one."""
    kept = first_of_each([entry.thing.summary for entry in entries], shingle=1, similarity=0.75)
    entries = [entry for entry, keep in zip(entries, kept, strict=True) if keep]
    kept = first_of_each([f"{entry.thing.summary} {entry.thing.body}" for entry in entries], shingle=3, similarity=0.5)
    return [entry for entry, keep in zip(entries, kept, strict=True) if keep]


def _of_package(package: str) -> Iterator[Entry]:
    """The documented things of a package, or of the standard library (``""``)."""
    top, _, inner = package.partition(".")
    root = _root(top)
    if root is None:
        return
    start = root / inner.replace(".", "/") if inner else root
    for path in _python_files(start):
        module = ".".join([*([top] if top else []), *path.relative_to(root).with_suffix("").parts])
        module = module.removesuffix(".__init__")
        if any(
            part.startswith("_") or part in NOT_DOCUMENTATION or part.startswith("test_") for part in module.split(".")
        ):
            continue
        group = module.partition(".")[0]
        try:
            for thing in documented(path.read_text(encoding="utf-8"), module):
                yield Entry(group, thing)
        except (SyntaxError, ValueError):
            continue


def _root(top: str) -> Path | None:
    """Where the standard library or a package lies; a package is located, not imported."""
    if not top:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(top)
    locations = spec.submodule_search_locations if spec else None
    return Path(locations[0]) if locations else None


def _python_files(start: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(start):
        folders[:] = sorted(n for n in folders if n not in NOT_DOCUMENTATION and not n.startswith(("_", ".")))
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(directory) / name


def _splits(entries: list[Entry]) -> dict[str, str]:
    """Split by group: groups are drawn for test, then for dev, until these have their queries; the rest is for training."""
    sizes: dict[str, int] = {}
    for entry in entries:
        sizes[entry.group] = sizes.get(entry.group, 0) + entry.thing.makes_a_query()
    split = dict.fromkeys(sizes, "train")
    drawn = sorted((group for group, size in sizes.items() if 0 < size <= LARGEST_EVALUATION_GROUP), key=_draw)
    for name, wanted in EVALUATION_QUERIES.items():
        filled = 0
        while drawn and filled < wanted:
            group = drawn.pop(0)
            if filled + sizes[group] <= wanted * 1.05:
                split[group] = name
                filled += sizes[group]
    return split
