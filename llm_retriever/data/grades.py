"""Parses grades of judgments, for sources of every layout and for prepared collections."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError

LOWEST, HIGHEST = -10, 1000
"""What a grade may be: TREC's scales reach from -2 (spam) to 4, percentages to 100. Beyond lie numbers of another column, such
as ids and time stamps; trec_eval takes memory in proportion to the highest grade, and nDCG its sums."""
# ASCII digits alone: Python's `int` reads "1_0" as 10, and digits of other scripts.
WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
MOST_DIGITS = 24
HINT = "grades are 0 (not relevant), 1, 2, …"


def grade_of(value: Any, *, file: str | Path, line: int, field: str) -> int:
    """Parses the grade in a cell: a whole number, or its digits; ``1.0`` is 1.

    Args:
        value: Text of a TSV file, or what JSON or parquet hold.
        file: For the error: where the judgment stands.
        line: Its 1-based line.
        field: Its column.

    Raises:
        InputError: It is no whole number from -10 to 1000.
    """
    number = _from_text(value) if isinstance(value, str) else _whole(value)
    if number is None:
        problem = f"the grade {_shown(value)} is not a whole number"
        raise InputError(problem, file=file, line=line, field=field, hint=HINT)
    if not LOWEST <= number <= HIGHEST:
        raise InputError(
            f"the grade {_shown(value)} is not within {LOWEST} to {HIGHEST}",
            file=file,
            line=line,
            field=field,
            hint=f"{HINT}; look whether this column holds grades at all",
        )
    return number


@functools.lru_cache(maxsize=1024)
def _from_text(text: str) -> int | None:
    """Parses a number, None if there is none; Python refuses thousands of digits, which are no grade."""
    if not WHOLE.fullmatch(text):
        return None
    digits = text.partition(".")[0]
    return int(digits) if len(digits) <= MOST_DIGITS else HIGHEST + 1


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        number = int(value)
    except (ValueError, OverflowError):  # NaN and infinity
        return None
    return number if number == value else None


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, Decimal) else str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
