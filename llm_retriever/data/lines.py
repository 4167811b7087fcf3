"""Lines of a file where they are needed: texts stay on disk, and memory holds where each line begins."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Callable, Iterator
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


class JsonItems(LineReader):
    """Parsed lines of a JSONL file by the number of an item; a line is one item, or as many as are counted in it.

    An item takes 8 bytes of memory, 12 where items are counted.

    Args:
        path: The file.
        count: Number of items of a parsed line; None = every line is one.
    """

    def __init__(self, path: Path, count: Callable[[Any], int] | None = None) -> None:
        super().__init__(path)
        self._starts, self._numbers, start = array("Q"), array("I"), 0
        with path.open("rb") as lines:
            for line in lines:
                items = 1 if count is None else count(json.loads(line))
                self._starts.extend([start] * items)
                self._numbers.extend(range(items) if count else ())
                start += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, item: int) -> Any:
        return json.loads(self.line(self._starts[item]))

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def number(self, item: int) -> int:
        """Which of its line's items it is, counted from 0."""
        return self._numbers[item]
