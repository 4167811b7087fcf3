"""Escapes names that people chose for Markdown, and builds tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

# An underscore within a word begins nothing; before and behind one it does.
_SPECIAL = re.compile(r"[\\`*\[\]|~]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")
_LINES = re.compile(r"[\t\r\n\v\f\x85\u2028\u2029]+")
_BEGINNING = re.compile(r"^(\d*)([#>+-]|[.)])(?=#*(\s|$))")


def escaped(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is, on one line.

    Example:
        >>> print(escaped("# a|b*c [x](y) snake_case"))
        \\# a\\|b\\*c \\[x\\](y) snake_case
    """
    text = _SPECIAL.sub(r"\\\g<0>", _LINES.sub(" ", text.strip()))
    return _BEGINNING.sub(r"\1\\\2", text)


def code(text: str) -> str:
    """Formats a text as code, whatever backticks it holds.

    Example:
        >>> print(code("corpus.jsonl"), code("a`b"))
        `corpus.jsonl` ``a`b``
    """
    text = _LINES.sub(" ", text.strip())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Builds a table whose first `left` columns are left-aligned, the others right; cells are Markdown already."""
    rule = "|" + "".join("---|" if column < left else "--:|" for column in range(len(head)))
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (head, *rows))
    return [first, rule, *others]
