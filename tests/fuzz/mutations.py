"""Seeded damage to files: bits, pieces, numbers, and the values of JSON."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBER = re.compile(rb"-?\d+(\.\d+)?(e[+-]?\d+)?")
NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e999",
    b"99999999999999999999",
    b"1_0",
    b"0x1",
    b"",
    b"9" * 5000,
    b"1.5",
)
PIECES = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"]",
    b"\n",
    b"\r\n",
    b"\t",
    b",",
    b"\\ud800",
    b"null",
    b"[" * 3000,
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**70, 1.5, float("nan"), float("inf"), "", " ", "x", "\ud800", "a\0b", "9" * 400),
    *([], {}, [[]], [None], {"": None}, ["x"], {"id": 1}, "../../etc", "é" * 20_000),
)


def flipped(data: bytes, draw: random.Random) -> bytes:
    """One to four bits are others."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    """The end is missing."""
    return data[: draw.randrange(len(data))]


def moved(data: bytes, draw: random.Random) -> bytes:
    """A piece is missing, or stands twice."""
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:] if draw.random() < 0.5 else data[:end] + data[start:]


def inserted(data: bytes, draw: random.Random) -> bytes:
    """Something else stands in between."""
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice(PIECES) + data[place:]


def renumbered(data: bytes, draw: random.Random) -> bytes:
    """A number is another one, or none."""
    found = list(NUMBER.finditer(data))
    if not found:
        return inserted(data, draw)
    number = draw.choice(found)
    return data[: number.start()] + draw.choice(NUMBERS) + data[number.end() :]


def revalued(data: bytes, draw: random.Random) -> bytes:
    """A value somewhere in the JSON of a line, or of the whole file, is another one or is missing."""
    lines = data.split(b"\n")
    try:
        json.loads(lines[0])
    except ValueError:
        lines = [data]
    at = draw.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except ValueError:
        return renumbered(data, draw)
    lines[at] = json.dumps(_with_another(value, draw)).encode()
    return b"\n".join(lines)


def _with_another(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or draw.random() < 0.15:
        return draw.choice(VALUES)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.15:
        del value[key]
    else:
        value[key] = _with_another(value[key], draw)
    return value


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flipped, cut, moved, inserted, renumbered, revalued)
WITHIN = (flipped, revalued)
"""Those that make no path absolute that was not."""


def damage(directory: Path, draw: random.Random, kinds: tuple[Any, ...] = DAMAGES) -> str:
    """Damages one file of a directory; returns its name."""
    path = draw.choice(sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size))
    kind = draw.choice(kinds)
    if path.suffix in (".json", ".jsonl") and draw.random() < 0.4:
        kind = revalued
    path.write_bytes(kind(path.read_bytes(), draw))
    return path.relative_to(directory).as_posix()
