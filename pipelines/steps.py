"""The steps, as they declare themselves: those of the chain in their order, and the others."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from components.entrypoint import Step

FOLDER = Path(__file__).parents[1] / "components"
CHAIN = (
    "prepare_corpus",
    "fetch_backbone",
    "mine_negatives",
    "adapt_backbone",
    "tune_retriever",
    "build_index",
    "evaluate",
    "promote",
)
"""The steps that turn a corpus into a retriever, in order; each reads what those before it have made, by its name."""
_OTHERS = sorted({path.parent.name for path in FOLDER.glob("*/component.py")} - {*CHAIN})
STEPS: dict[str, Step[Any]] = {
    name: importlib.import_module(f"components.{name}.__main__").STEP for name in (*CHAIN, *_OTHERS)
}
STAGES: dict[str, Step[Any]] = {}
"""The first step of every stage, whose settings are those of the stage."""
for _step in STEPS.values():
    STAGES.setdefault(_step.stage, _step)


def component_of(name: str) -> Any:
    """Returns a step's component."""
    return getattr(importlib.import_module(f"components.{name}.component"), name)
