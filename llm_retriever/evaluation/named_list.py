"""Settings that name several things: ``[NAME=]VALUE`` separated by commas."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llm_retriever.errors import InputError
from llm_retriever.files.names import slug

_NAMED = re.compile(r"(?:([A-Za-z0-9][A-Za-z0-9 +._-]*(?:/[A-Za-z0-9 +._-]+)?)=)?(\S.*)")
_UNSUITABLE = re.compile(r"[^A-Za-z0-9+._/-]+")


def named(text: str, field: str, taken: Iterable[str] = (), *, parts: bool = False) -> dict[str, str]:
    """Parses a setting that names several things: values by name, in order; by default the last part of a value names it.

    Names become file names, tags of runs and names of metrics, so that other characters in them become ``-``.

    Args:
        text: The setting.
        field: Its name, for errors.
        taken: Names that something else has already.
        parts: Whether a name ``WHOLE/PART`` may say that a value is a part of something.

    Raises:
        InputError: An entry cannot be read, or two names are alike.
    """
    values: dict[str, str] = {}
    seen = {slug(name) for name in taken}
    for entry in filter(None, map(str.strip, text.split(","))):
        match = _NAMED.fullmatch(entry)
        value = match[2].strip() if match else ""
        name = _UNSUITABLE.sub("-", ((match[1] or last_part(value)) if match else "").strip()).strip("-.")
        name = name if parts else name.replace("/", "-")
        if not slug(name):
            raise InputError(f"{entry!r} has no name", field=field, hint="write NAME=VALUE, separated by commas")
        if slug(name) in seen:
            raise InputError(f"{name!r} is taken", field=field, hint="write NAME= and another name in front")
        seen.add(slug(name))
        values[name] = value
    return values


def last_part(value: str) -> str:
    """Last part of a path, a URI or a name on the hub, without revision or fragment."""
    return re.split(r"[@#]", value)[0].rstrip("/").removeprefix("demo:").rsplit("/", 1)[-1]
