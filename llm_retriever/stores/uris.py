"""Kinds of URIs that a place may be given by, and suggestions for misspelt ones.

A local directory may have nearly any name: without a look at its beginning, `s3:/bucket` would be one, and be made.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from llm_retriever.errors import InputError

STORES = ("s3://", "file://")
SOURCES = ("s3://", "hf://", "demo:")
BACKBONES = ("s3://", "file://", "hf://", "scratch:")
_HEAD = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)(:/*|//+)")
_ALIKE, _SURE = 0.5, 0.8
"""Share of common characters from which another scheme is taken for a slip of the pen, and without slashes behind it."""


def check_scheme(text: str, known: Sequence[str] = STORES, *, field: str | None = None) -> None:
    """Raises InputError for what begins like a URI of none of the known kinds; paths of directories pass.

    Args:
        text: A directory or URI, as it was given.
        known: Beginnings of the URIs that can be used.
        field: The setting, for the message.

    Raises:
        InputError: It names the nearest kind.

    Example:
        >>> check_scheme("s3:/bucket/prefix")
        Traceback (most recent call last):
        llm_retriever.errors.InputError: s3:/bucket/prefix: s3:/ is not a kind of URI that can be used here; did you mean s3://?
    """
    head = _HEAD.match(text)
    if head is None or text.startswith(tuple(known)):
        return
    kinds = {beginning.partition(":")[0]: beginning for beginning in known}
    # `s3:bucket` and `s3//bucket` are slips; `notes:2024` and `data//x` are directories.
    is_uri = head[2].startswith(":/")
    near = difflib.get_close_matches(head[1].lower(), kinds, 1, _ALIKE if is_uri else _SURE)
    if not is_uri and not near:
        return
    raise InputError(
        f"{head[0].strip()} is not a kind of URI that can be used here",
        file=text,
        field=field,
        hint=f"did you mean {kinds[near[0]]}?" if near else "give a directory or s3://bucket/prefix",
    )
