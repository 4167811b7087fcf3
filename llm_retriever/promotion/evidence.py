"""Reads the evidence on a retriever, and on it and the one in production, from an evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_retriever.data.training_queries import favour
from llm_retriever.errors import InputError
from llm_retriever.metrics.conventions import HYBRID, PRODUCTION, PRODUCTION_HYBRID, RETRIEVER
from llm_retriever.promotion.first import Lead, leads
from llm_retriever.settings import PromotionSettings

HINT = "evaluate again"


@dataclasses.dataclass(frozen=True)
class Measured:
    """Values of the metric that decides, from one evaluation.

    Attributes:
        place: Collection fingerprint, split and number of queries: two values compare only if theirs are equal.
        value: Value of the retriever, or of its hybrid search where that decides.
        others: Values of the baselines, by name.
        leads: Over the baselines that a first version is judged by.
    """

    place: tuple[str, str, int]
    value: float
    others: dict[str, float]
    leads: tuple[Lead, ...] = ()


@dataclasses.dataclass(frozen=True)
class Pair:
    """The new retriever and the one in production on the same queries.

    Attributes:
        split: Split of the queries.
        queries: How many.
        metric: That was tested: the evaluation's primary one.
        new, old: Means of the two.
        difference: new − old.
        interval: 95 % confidence interval of the difference; None for a single query.
        p: Two-sided, of the paired t-test, not corrected for other comparisons.
        is_target: Whether this split decides.
        is_guard: Whether it may speak against the new one.
    """

    split: str
    queries: int
    metric: str
    new: float
    old: float
    difference: float
    interval: tuple[float, float] | None
    p: float
    is_target: bool
    is_guard: bool

    def is_worse(self, significance: float) -> bool:
        """Whether the new one is significantly worse."""
        return self.difference < 0 and self.p < significance

    def verdict(self, significance: float) -> str:
        """Verdict on the new one: ``equal``, ``significantly better``, ``not significantly worse``."""
        if self.difference == 0:
            return "equal"
        word = "better" if self.difference > 0 else "worse"
        return f"{'' if self.p < significance else 'not '}significantly {word}"


@dataclasses.dataclass(frozen=True)
class Contest:
    """The new retriever against the version in production, measured by the same evaluation.

    Attributes:
        version: Name of that version.
        value: Its value of the metric that decides, on the split that decides; None if it was not measured there, as on
            collections that nothing was trained on.
        pairs: All splits that both were measured on.
        left_out: Splits that only the new one was measured on.
        encoded, reused: Passages of the new collection that were encoded for it, and that its index held already.
        remarks: Sentences for people on the comparison.
    """

    version: str
    value: float | None
    pairs: list[Pair]
    left_out: list[str]
    encoded: int
    reused: int
    remarks: tuple[str, ...] = ()


def target_of(content: Mapping[str, Any], settings: PromotionSettings) -> str:
    """Name of the split that decides: the first one that nothing was chosen on, if any; "" if nothing was evaluated."""
    names = list(content.get("splits") or [""])
    chosen_on = (content.get(HYBRID) or {}).get("chosen_on")
    return settings.split or next((name for name in names if name != chosen_on), names[0])


def measured(
    content: Mapping[str, Any], split: str, metric: str, file: Path | str, system: str = RETRIEVER
) -> Measured:
    """Reads one metric of one split from the content of `evaluation.json`.

    Raises:
        InputError: It has no such split, system or metric, or the value is not a number.
    """
    splits = content.get("splits") or {}
    if split not in splits:
        raise InputError(f"has no split {split!r}", file=file, field="split", hint=one_of(splits))
    systems = splits[split].get("systems") or {}
    values = systems.get(system) or {}
    if metric not in values:
        raise InputError(f"has no {metric!r} of the {system}", file=file, field="metric", hint=one_of(values))
    if not isinstance(values[metric], int | float) or not math.isfinite(values[metric]):
        raise InputError(f"{values[metric]!r} is not a number", file=file, field=metric, hint=HINT)
    others = {
        name: row[metric]
        for name, row in systems.items()
        if name not in (system, RETRIEVER, PRODUCTION, PRODUCTION_HYBRID) and metric in row
    }
    collection = splits[split].get("collection", content.get("collection", ""))
    place = (str(collection), split, int(splits[split].get("queries", 0)))
    return Measured(place, float(values[metric]), others, leads(splits[split]))


def contest(content: Mapping[str, Any], settings: PromotionSettings, file: Path) -> Contest | None:
    """Reads the comparison with the version in production; None if the evaluation has none.

    Raises:
        InputError: A guard split was not evaluated, or the version in production was not measured on it.
    """
    splits, target, guards = content.get("splits") or {}, target_of(content, settings), _guards(settings)
    for name in guards:
        if name not in splits:
            raise InputError(f"has no split {name!r}", file=file, field="guards", hint=one_of(splits))
    production = content.get(PRODUCTION)
    if not production:
        return None
    systems = _contestants(splits, settings)
    both = [name for name, split in splits.items() if systems.old in split.get("systems", {})]
    for name in guards:
        if name not in both:
            problem = f"the version in production was not measured on the split {name!r}"
            raise InputError(problem, file=file, field="guards", hint=one_of(both))
    chosen = guards or both
    value = measured(content, target, settings.metric, file, systems.old).value if target in both else None
    return Contest(
        version=str(production.get("version", "")),
        value=value,
        pairs=[_pair(name, splits[name], file, systems, name == target, name in chosen) for name in both],
        left_out=[name for name in splits if name not in both],
        encoded=int(production.get("encoded", 0)),
        reused=int(production.get("reused", 0)),
        remarks=(*systems.remarks, *_remarks(production, splits)),
    )


class _Systems(NamedTuple):
    """The two systems that are compared, the key of their tests, and remarks on the choice."""

    new: str
    old: str
    tests: str
    remarks: tuple[str, ...] = ()


def _contestants(splits: Mapping[str, Any], settings: PromotionSettings) -> _Systems:
    """Chooses retriever against retriever, or hybrid against hybrid; where production has none, against its retriever."""
    if settings.system == RETRIEVER:
        return _Systems(RETRIEVER, PRODUCTION, "comparisons")
    if any(PRODUCTION_HYBRID in split.get("systems", {}) for split in splits.values()):
        return _Systems(HYBRID, PRODUCTION_HYBRID, "hybrid_comparisons", ("Hybrid search decided, on both sides.",))
    remark = (
        "The version in production has no hybrid search: that of the new retriever was compared with its retriever."
    )
    return _Systems(HYBRID, PRODUCTION, "hybrid_comparisons", (remark,))


def _remarks(production: Mapping[str, Any], splits: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes splits with queries that the version in production was trained on, and the new retriever was not."""
    known = {name: int(count) for name, count in (production.get("trained_on") or {}).items() if name in splits}
    return tuple(favour(name, count, int(splits[name]["queries"])) for name, count in known.items())


def _guards(settings: PromotionSettings) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in settings.guards.split(",") if name.strip()))


def _pair(name: str, split: Mapping[str, Any], file: Path, systems: _Systems, is_target: bool, is_guard: bool) -> Pair:
    compared = next((c for c in split.get(systems.tests, []) if c["baseline"] == systems.old), None)
    if compared is None:
        problem = f"the split {name!r} has no comparison with {systems.old}"
        raise InputError(problem, file=file, field=systems.tests, hint=HINT)
    metric, values, interval = compared["metric"], split["systems"], compared["interval"]
    return Pair(
        split=name,
        queries=int(compared["queries"]),
        metric=metric,
        new=float(values[systems.new][metric]),
        old=float(values[systems.old][metric]),
        difference=float(compared["mean_difference"]),
        interval=(float(interval[0]), float(interval[1])) if interval else None,
        p=float(compared["t_test"]),
        is_target=is_target,
        is_guard=is_guard,
    )


def one_of(names: Mapping[str, Any] | list[str]) -> str:
    """Hint that lists the names there are."""
    return f"use one of {', '.join(names)}" if names else HINT
