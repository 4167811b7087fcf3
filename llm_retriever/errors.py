"""The error that users cause: it names place and hint, and ends a step with exit code 2."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

EXIT_BAD_INPUT = 2


class InputError(Exception):
    """Something that was given to a step cannot be used as it is.

    Args:
        problem: What is wrong, without a full stop: ``"the text is empty"``.
        file: The file or URI at fault.
        line: Its 1-based line number.
        field: The field, parameter or column at fault.
        hint: What to do about it: ``"remove the line or give it a text"``.

    ``str(error)`` is one line: ``corpus.jsonl:17: field "text": the text is empty; remove the line or give it a text``.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        field: str | None = None,
        hint: str = "",
    ) -> None:
        self.problem, self.file, self.line, self.field, self.hint = problem, file, line, field, hint
        super().__init__(self._one_line())

    def fields(self) -> dict[str, Any]:
        """The error as JSON values: `InputError(**error.fields())` is the same again, in another process."""
        file = None if self.file is None else str(self.file)
        return {"problem": self.problem, "file": file, "line": self.line, "field": self.field, "hint": self.hint}

    def _one_line(self) -> str:
        place = "" if self.file is None else str(self.file)
        if place and self.line is not None:
            place += f":{self.line}"
        parts = [place] if place else []
        if self.field is not None:
            parts.append(f'field "{self.field}"')
        parts.append(self.problem + (f"; {self.hint}" if self.hint else ""))
        return " ".join(": ".join(parts).split())


def refusal_of(error: Exception) -> InputError | None:
    """The error of a file system as bad input, where a path was given that cannot be used; None for any other error."""
    if isinstance(error, PermissionError) and error.filename is not None:
        hint = f"let user {os.getuid()} read its inputs and write its outputs"
        return InputError("permission denied", file=error.filename, hint=hint)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        problem = (error.strerror or str(error)).lower()
        return InputError(problem, file=error.filename, hint="give another path")
    return None
