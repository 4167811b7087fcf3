"""Whether a new retriever replaces the one in production, and its publication if it does.

The rule, on one metric of one split:

1. The retriever that is in production already, with the same index, is kept: there is nothing to do.
2. The value must reach `minimum_value`.
3. Where nothing is in production, that is all.
4. Where the version in production was measured on the same queries (same collection, split and metric), the difference
   to it must reach `minimum_gain`.
5. Where it was measured on others, the two numbers say nothing about each other. The new one then replaces the old one
   only if `minimum_value` is set: somebody has said which value is good enough. Without it the old one stays, because
   a worse model must never replace a better one.

Keeping the old version is a result, not a failure.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.card import RetrieverCard
from llm_retriever.errors import InputError
from llm_retriever.indexing.places import complete
from llm_retriever.indexing.shards import MANIFEST_FILE
from llm_retriever.registry import Registry, Version, model_digest
from llm_retriever.settings import PromotionSettings

SYSTEM = "retriever"
# Differences of decimal fractions are off by rounding: 0.3 - 0.2 < 0.1.
_ROUNDING = 1e-9
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Measured:
    """One evaluation's values of the metric that decides.

    Attributes:
        place: Collection fingerprint, split and number of queries: two values compare only if theirs are equal.
        value: Of the retriever.
        others: Of the baselines, by name.
    """

    place: tuple[str, str, int]
    value: float
    others: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decided, and why.

    Attributes:
        replace: Whether the new retriever is to replace what is in production.
        reasons: Sentences, for people.
        before: Value of the version in production, where it compares.
    """

    replace: bool
    reasons: list[str]
    before: float | None = None


def promote(
    settings: PromotionSettings, evaluation: Path, retriever: Path, index: Path, decision: Path
) -> tuple[str, bool]:
    """Decides, publishes if the rule says so, and writes the decision with its reasons as Markdown.

    Two runs that decide at the same time compare with the same version; the later one notices, and decides again.

    Args:
        settings: The rule's numbers, and the URI of the published versions; "" = decide, publish nothing.
        evaluation: Output of `evaluate`.
        retriever: The retriever that was evaluated.
        index: The index that was evaluated.
        decision: The Markdown file to write.

    Returns:
        The URI of the version that is in production afterwards ("" if none), and whether it is the new one.

    Raises:
        InputError: The evaluation is of another retriever or lacks the split or metric, or the URI cannot be used.
    """
    content = files.read_json(evaluation / "evaluation.json", mend="give the output of evaluate")
    split = settings.split or next(iter(content.get("splits") or [""]))
    new = measured(content, split, settings.metric, evaluation / "evaluation.json")
    card = RetrieverCard.load(retriever).digest()
    _check_same_card(content, card, evaluation / "evaluation.json")
    manifest = index / MANIFEST_FILE
    _check_same_card(files.read_json(manifest, mend="give the output of build_index"), card, manifest)
    if not settings.uri:
        outcome = decide(settings, new, None)
        files.write_text(decision, decision_markdown(settings, new, outcome, None, ""))
        return "", False
    directories = {"retriever": retriever, "index": index, "evaluation": evaluation}
    version, outcome = _settle(settings, new, directories, card)
    uri = Registry(settings.uri).uri_of(version) if version else ""
    files.write_text(decision, decision_markdown(settings, new, outcome, version, uri))
    return uri, outcome.replace


def _settle(
    settings: PromotionSettings, new: Measured, directories: dict[str, Path], card: str
) -> tuple[Version | None, Decision]:
    registry = Registry(settings.uri)
    model = model_digest(directories["retriever"], directories["index"])
    for _ in range(_ATTEMPTS):
        before = registry.production()
        if before is not None and before.model == model:
            return before, Decision(False, [f"This retriever and index are in production already, as {before.name}."])
        outcome = decide(settings, new, _measured_before(registry, before, new, settings))
        if not outcome.replace:
            return before, outcome
        with complete(directories["index"]) as index:
            version = registry.publish({**directories, "index": index}, model, card)
        if registry.production() == before:
            reason = {"collection": new.place[0], "split": new.place[1], settings.metric: new.value}
            registry.put_into_production(version, reason)
            return version, outcome
    raise InputError("other runs keep promoting", file=settings.uri, mend="let one run at a time promote to this URI")


def _measured_before(
    registry: Registry, before: Version | None, new: Measured, settings: PromotionSettings
) -> Measured | str | None:
    """The same metric of the version in production; its name where that was measured elsewhere; None without one."""
    if before is None:
        return None
    content = registry.evaluation(before)
    try:
        old = measured(content, new.place[1], settings.metric, registry.uri_of(before))
    except InputError:
        return before.name
    return old if old.place == new.place else before.name


def decide(settings: PromotionSettings, new: Measured, before: Measured | str | None) -> Decision:
    """Applies the rule of this module.

    Args:
        settings: The rule's numbers.
        new: The new retriever's evaluation.
        before: The evaluation of the version in production; its name, where the two do not compare; None without one.
    """
    metric, reasons = settings.metric, []
    enough = new.value >= settings.minimum_value - _ROUNDING
    if settings.minimum_value or not enough:
        relation = "reaches" if enough else "stays below"
        reasons.append(f"{metric} {new.value:.4f} {relation} the required {settings.minimum_value:.4f}.")
    if before is None:
        reasons.append("Nothing is in production yet.")
        return Decision(enough, reasons)
    if isinstance(before, str):
        reasons.append(f"{before}, in production, was measured on other queries: its numbers are not comparable.")
        if not settings.minimum_value:
            reasons.append("Set minimum_value to say from which value on a new version may replace it.")
        return Decision(enough and settings.minimum_value > 0, reasons)
    gain = new.value - before.value
    better = gain >= settings.minimum_gain - _ROUNDING
    relation = "reaches" if better else "stays below"
    reasons.append(f"The difference to production, {gain:+.4f}, {relation} the required {settings.minimum_gain:+.4f}.")
    return Decision(enough and better, reasons, before.value)


def measured(content: dict[str, Any], split: str, metric: str, file: Path | str) -> Measured:
    """Reads one metric of one split from the content of `evaluation.json`.

    Raises:
        InputError: It has no such split or metric, or the value is not a number.
    """
    splits = content.get("splits") or {}
    if split not in splits:
        raise InputError(f"has no split {split!r}", file=file, field="split", mend=_one_of(splits))
    systems = splits[split].get("systems") or {}
    values = systems.get(SYSTEM) or {}
    if metric not in values:
        raise InputError(f"has no {metric!r} of the {SYSTEM}", file=file, field="metric", mend=_one_of(values))
    if not isinstance(values[metric], int | float) or not math.isfinite(values[metric]):
        raise InputError(f"{values[metric]!r} is not a number", file=file, field=metric, mend="evaluate again")
    others = {name: row[metric] for name, row in systems.items() if name != SYSTEM and metric in row}
    collection = splits[split].get("collection", content.get("collection", ""))
    place = (str(collection), split, int(splits[split].get("queries", 0)))
    return Measured(place, float(values[metric]), others)


def _one_of(names: dict[str, Any]) -> str:
    return f"use one of {', '.join(names)}" if names else "evaluate again"


def _check_same_card(content: dict[str, Any], card: str, file: Path) -> None:
    if content.get("card") != card:
        raise InputError(
            "is of another retriever", file=file, field="card", mend="give the outputs of one and the same run"
        )


def decision_markdown(
    settings: PromotionSettings, new: Measured, outcome: Decision, version: Version | None, uri: str
) -> str:
    """The decision, for people: what, the numbers, why, and where the version in production is."""
    rows = [("new retriever", new.value)]
    if outcome.before is not None:
        rows.append(("in production before", outcome.before))
    rows += sorted(new.others.items())
    table = [f"| {name} | {value:.4f} |" for name, value in rows]
    lines = [
        f"# {_headline(settings, outcome, version)}",
        "",
        f"| | {settings.metric} on {new.place[1]} |",
        "|---|---|",
        *table,
        "",
        *(f"- {reason}" for reason in outcome.reasons),
    ]
    if not settings.uri:
        lines.append("- Nothing was published: no URI is set.")
    if uri:
        lines += ["", f"In production: `{uri}`"]
    return "\n".join(lines) + "\n"


def _headline(settings: PromotionSettings, outcome: Decision, version: Version | None) -> str:
    if not settings.uri:
        return "Good enough to promote" if outcome.replace else "Not good enough to promote"
    if outcome.replace and version is not None:
        return f"Promoted: {version.name}"
    return f"Kept: {version.name} stays in production" if version is not None else "Not promoted"
