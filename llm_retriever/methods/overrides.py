"""Overrides fields of a recipe by settings, but for the values that leave the decision to the recipe."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from llm_retriever.methods.types import ContrastiveRecipe, Lora, Schedule

UNSET_NUMBER = -1
UNSET_TEXT = ""
Row = TypeVar("Row")


def is_unset(value: Any) -> bool:
    """Whether a setting leaves the decision to the recipe."""
    return value == UNSET_TEXT if isinstance(value, str) else value == UNSET_NUMBER


def overridden(row: Row, settings: Any) -> Row:
    """Returns `row` (a recipe, schedule or adapter) with every field that `settings` sets.

    Nested dataclasses are overridden too; `lora_rank` of the settings is the field `rank` of a `Lora`. The switches `on`
    and `off` become booleans. Where the settings say how many epochs, the recipe's number of updates counts no more.
    """
    changes: dict[str, Any] = {}
    if isinstance(row, Schedule) and not is_unset(getattr(settings, "epochs", UNSET_NUMBER)):
        changes |= {"max_steps": -1, "decay_epochs": 0.0}
    for field in dataclasses.fields(row):  # type: ignore[arg-type]
        current = getattr(row, field.name)
        value = getattr(settings, f"lora_{field.name}" if isinstance(row, Lora) else field.name, UNSET_NUMBER)
        if isinstance(current, (Schedule, Lora, ContrastiveRecipe)):
            changes[field.name] = overridden(current, settings)
        elif not is_unset(value) and not dataclasses.is_dataclass(current):
            changes[field.name] = value == "on" if isinstance(current, bool) else value
    return dataclasses.replace(row, **changes)  # type: ignore[type-var]
