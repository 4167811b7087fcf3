"""Derives an image's content from its lists and the lock, without asking it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from images.build import ROOT
from llm_retriever import __version__
from llm_retriever.errors import InputError

OWN = "llm-retriever"
LOCKS = ("requirements.lock", "requirements-alone.lock")
LISTS = {"cpu": ("cpu",), "gpu": ("cpu", "gpu")}
"""The folders whose packages.txt and alone.txt an image installs."""
TORCH = re.compile(r"'(torch)==([^']+)'")
REMOVED = re.compile(r"pip uninstall --yes (.+?) ;;")
FAISS = re.compile(r"^ARG FAISS=([\w-]+)==(\S+)$", re.MULTILINE)


def canonical(name: str) -> str:
    """Spells the name of a package as the index compares it: `Typing_Extensions` -> `typing-extensions`."""
    from packaging.utils import canonicalize_name

    return str(canonicalize_name(name))


def needed(requires: Iterable[str]) -> list[str]:
    """Canonical names of the requirements that apply here, without extras."""
    from packaging.requirements import Requirement

    parsed = (Requirement(text) for text in requires)
    return [canonical(r.name) for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def listed(kind: str, file: str) -> list[str]:
    """Canonical names in `packages.txt` or `alone.txt` of an image, those of the lists that it shares included."""
    texts = [(ROOT / "images" / folder / file).read_text() for folder in LISTS[kind]]
    names = [line.split("#")[0].strip() for text in texts for line in text.splitlines()]
    return [canonical(name) for name in names if name]


def pinned() -> dict[str, str]:
    """Versions by canonical name: the lock's, and torch's and FAISS's, which stand in install.sh and the Dockerfile."""
    texts = [(ROOT / name).read_text() for name in LOCKS]
    lines = [line for text in texts for line in text.splitlines() if "==" in line and line[0] != "#"]
    rows = [tuple(line.split("==")) for line in lines]
    return {canonical(name): version for name, version in rows} | _beside_the_lock() | {OWN: __version__}


def _beside_the_lock() -> dict[str, str]:
    rows = TORCH.findall((ROOT / "images" / "install.sh").read_text())
    return dict(rows + FAISS.findall((ROOT / "images" / "gpu" / "Dockerfile").read_text()))


def inventory(kind: str) -> dict[str, Any]:
    """Predicts what `images/inventory.py` would print in the image, as far as it follows from the lists, without the base.

    Raises:
        InputError: A package is not installed here, so what it needs is not known.
    """
    versions, rows = pinned(), {}
    removed = set(" ".join(REMOVED.findall((ROOT / "images" / "install.sh").read_text())).split())
    alone = {*listed(kind, "alone.txt"), OWN}
    waiting = [*alone, *listed(kind, "packages.txt"), *(_beside_the_lock() if kind == "gpu" else ())]
    while waiting:
        name = waiting.pop()
        if name in rows or name in removed:
            continue
        rows[name] = _row(name, versions)
        if name not in alone:
            waiting += needed(rows[name]["requires"])
    return {"python": "", "system": {}, "debian": [], "distributions": [rows[name] for name in sorted(rows)]}


def _row(name: str, versions: dict[str, str]) -> dict[str, Any]:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{name} is not installed here", file="requirements.lock", hint="make .venv/installed, or ask the image"
        ) from None
    told = distribution.metadata
    licence = (told.get("License-Expression") or told.get("License") or "").strip()
    version = versions.get(name, distribution.version)
    return {"name": told["Name"], "version": version, "requires": distribution.requires or [], "licence": licence}
