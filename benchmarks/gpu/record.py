"""What a block writes down: its figures or its failure, item by item, so that nothing is lost where it is ended."""

from __future__ import annotations

import argparse
import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAILED = "failed"


@dataclass
class Block:
    """A block under way.

    Attributes:
        given: The command line: out, device, tiny, backbone, collection, training_set, splits, steps.
        name: Of its file.
        seconds: After which no further item is begun.
        items: Figures by item.
    """

    given: argparse.Namespace
    name: str
    seconds: float
    items: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self.scratch = self.given.out / "scratch" / self.name
        shutil.rmtree(self.scratch, ignore_errors=True)  # checkpoints of an earlier run would be gone on from
        self.scratch.mkdir(parents=True)

    @property
    def device(self) -> str:
        """As torch names it."""
        return str(self.given.device)

    def item(self, name: str, call: Callable[[], Mapping[str, Any]]) -> None:
        """Does one item, and keeps its figures, or how it failed."""
        if time.monotonic() - self._started > self.seconds:
            self._keep(name, {FAILED: "not begun: the block's time is over"})
            return
        self._keep(name, {FAILED: "not ended: the block's time was over, or its process died"})
        started = time.monotonic()
        try:
            figures = dict(call())
        except (Exception, SystemExit) as error:  # whatever it is, the other items are worth having
            traceback.print_exc()
            figures = {FAILED: f"{type(error).__name__}: {error}"}
        self._keep(name, {"took": round(time.monotonic() - started, 2), **figures})
        _free()

    def _keep(self, name: str, figures: dict[str, Any]) -> None:
        self.items[name] = figures
        path = self.given.out / f"{self.name}.json"
        path.write_text(json.dumps(self.items, indent=1, default=float) + "\n", encoding="utf-8")


def _free() -> None:
    from llm_retriever.models.loading import free_memory

    free_memory()


def table(out: Path, names: list[str]) -> str:
    """Everything that the blocks wrote, a line an item."""
    lines = ["| block | item | took, s | figures |", "|---|---|---|---|"]
    for name in names:
        path = out / f"{name}.json"
        items = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"": {FAILED: "wrote nothing"}}
        for item, figures in items.items():
            shown = ", ".join(f"{key} {_shown(value)}" for key, value in figures.items() if key != "took")
            lines.append(f"| {name} | {item} | {figures.get('took', '')} | {shown} |")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
