"""Lines of a file where they are needed: texts stay on disk, and memory holds where each line begins."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LINE_BYTES = 4096


class LineReader:
    """Reads the lines of a file by where they begin.

    It can be pickled, and shared by forked processes, because it reads at positions (`pread`) instead of moving through the
    file.

    Args:
        path: The file, which stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def line(self, start: int) -> bytes:
        """The line that begins at a byte, without its end."""
        line = bytearray()
        while b"\n" not in (piece := os.pread(self._descriptor, LINE_BYTES, start + len(line))):
            line += piece
            if not piece:
                return bytes(line)
        return bytes(line + piece[: piece.index(b"\n")])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class JsonLines(LineReader):
    """Parsed lines of a JSONL file by their number; takes 8 bytes of memory each.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._starts, start = array("Q"), 0
        with path.open("rb") as lines:
            for line in lines:
                self._starts.append(start)
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Any:
        return json.loads(self.line(self._starts[number]))

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))
