"""What a work of bench.py is: its ways, and the inputs that all of them read."""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
OURS, MATRIX = "llm-retriever", "matrix products alone"


@dataclass(frozen=True)
class Inputs:
    """Directories and sizes that every way is given.

    Attributes:
        backbone: Output of fetch_backbone.
        collection: Output of prepare_corpus.
        scratch: For exports, vectors and the peers' environment.
        passages: Number of passages to encode.
        updates: Of a training.
    """

    backbone: Path
    collection: Path
    scratch: Path
    passages: int
    updates: int

    @classmethod
    def of(cls, given: argparse.Namespace) -> Inputs:
        """Takes the command line's."""
        backbone, collection = (
            given.backbone or given.scratch / "backbone",
            given.collection or given.scratch / "collection",
        )
        return cls(backbone, collection, given.scratch, given.passages, given.updates)

    def prepare(self) -> None:
        """Fetches the demo's backbone and prepares its collection, where there are none."""
        self.scratch.mkdir(parents=True, exist_ok=True)
        if not self.collection.exists():
            told = ("--statistics", self.scratch / "statistics.html")
            _step("prepare_corpus", "--uri", "demo:python-docs", "--collection", self.collection, *told)
        if not self.backbone.exists():
            chosen = ("--source", "smollm2-135m", "--layers", "6", "--collection", self.collection)
            _step("fetch_backbone", *chosen, "--backbone", self.backbone)

    def flags(self) -> list[str]:
        """The same as a command line."""
        named: dict[str, Any] = {"backbone": self.backbone, "collection": self.collection, "scratch": self.scratch}
        named |= {"passages": self.passages, "updates": self.updates}
        return [f"--{name}={value}" for name, value in named.items()]

    def folder(self) -> Path:
        """A directory that lasts as long as this process."""
        directory = Path(tempfile.mkdtemp(dir=self.scratch))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def texts(self, name: str, texts: list[str]) -> Path:
        """Texts as a file that a peer reads."""
        path = self.scratch / f"{name}.json"
        path.write_text(json.dumps(texts))
        return path

    def vectors(self, work: str, way: str) -> Path:
        """Where a way leaves its vectors."""
        return self.scratch / f"{work}-{way.replace(' ', '-')}.npy"


def _step(component: str, *flags: str | Path) -> None:
    subprocess.run([sys.executable, "-m", f"components.{component}", *map(str, flags)], cwd=ROOT, check=True)


class Here(NamedTuple):
    """A way that this project's environment runs: `make` sets it up and gives what is timed."""

    make: Callable[[Inputs], Callable[[], Mapping[str, Any] | None]]

    def command(self, work: Work, way: str, inputs: Inputs) -> list[str]:
        """Starts it."""
        return [sys.executable, str(Path(__file__).with_name("bench.py")), "--serve", work.name, way, *inputs.flags()]


class There(NamedTuple):
    """A way that a program of its own runs: `start` gives the command."""

    start: Callable[[Inputs], list[str]]

    def command(self, work: Work, way: str, inputs: Inputs) -> list[str]:
        """Starts it."""
        return self.start(inputs)


class Work(NamedTuple):
    """A piece of work and the ways to do it.

    Attributes:
        name: On the command line.
        title: In the table.
        ways: By name; OURS is this project's, MATRIX the ceiling, all others are peers.
        target: Times as fast as the best peer, at least.
        goal: Share of the matrix rate, at least.
        agreement: Compares the results, in words; raises if they do not agree.
    """

    name: str
    title: str
    ways: Mapping[str, Here | There]
    target: float | None = None
    goal: float | None = None
    agreement: Callable[[dict[str, Any], Inputs], str] | None = None

    @property
    def peers(self) -> list[str]:
        """Names of the peers' ways."""
        return [name for name in self.ways if name not in (OURS, MATRIX)]
