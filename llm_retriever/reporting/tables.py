"""Cells of the pages' larger tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_retriever.reporting import verdict

NOTHING = "–"
MEAN = "mean"


def own_splits(content: Mapping[str, Any]) -> dict[str, Any]:
    """Splits of the run's own collection."""
    return {name: split for name, split in content["splits"].items() if "zero_shot" not in split}


def zero_shot_splits(content: Mapping[str, Any]) -> dict[str, Any]:
    """Splits of collections that nothing was trained on."""
    return {name: split for name, split in content["splits"].items() if "zero_shot" in split}


def zero_shot_table(content: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """Builds the table of the zero-shot collections, one a row, and their mean; None where there are none.

    Args:
        content: Content of `evaluation.json` or `comparison.json`.
        metric: The metric of the cells.

    Returns:
        `systems`, the heads; `rows` of `name`, `note`, `is_mean`, and `cells` of `text`, `is_best`, `daggers`.
    """
    zero_shot = content.get("zero_shot")
    if not zero_shot:
        return None
    values = {name: facts.get("systems", facts) for name, facts in zero_shot["collections"].items()}
    systems = list(dict.fromkeys(system for systems in values.values() for system in systems))
    rows = [_collection(content, name, collection, systems, metric) for name, collection in values.items()]
    if len(rows) > 1:
        rows.append(_row(f"{MEAN} of {len(rows)}", "", zero_shot["mean"], systems, metric) | {"is_mean": True})
    return {"systems": systems, "rows": rows}


def _collection(
    content: Mapping[str, Any], name: str, values: Mapping[str, Any], systems: list[str], metric: str
) -> dict[str, Any]:
    splits = [split for split in content["splits"].values() if split.get("zero_shot") == name]
    note = f"mean of {len(splits)} parts" if len(splits) > 1 else ""
    # A mean over parts has no test of its own.
    return _row(name, note, values, systems, metric, splits[0] if len(splits) == 1 else None)


def _row(
    name: str,
    note: str,
    values: Mapping[str, Mapping[str, float]],
    systems: list[str],
    metric: str,
    split: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    highest = max(values[system][metric] for system in systems if system in values)
    cells = [
        {
            "text": f"{values[system][metric]:.3f}" if system in values else NOTHING,
            "is_best": system in values and values[system][metric] == highest,
            "daggers": verdict.daggers(split, system, metric) if split else "",
        }
        for system in systems
    ]
    return {"name": name, "note": note, "is_mean": False, "cells": cells}
