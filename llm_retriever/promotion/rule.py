"""The rule: decides from the measurements whether the new retriever replaces the one in production, with reasons."""

from __future__ import annotations

import dataclasses

from llm_retriever.metrics.conventions import p_equals
from llm_retriever.promotion.evidence import Contest, Measured, Pair
from llm_retriever.promotion.first import deserves_to_be_first
from llm_retriever.settings import PromotionSettings

# Differences of decimal fractions are off by rounding: 0.3 - 0.2 < 0.1.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class Decision:
    """A decision, with reasons.

    Attributes:
        replace: Whether the new retriever is to replace what is in production.
        reasons: Sentences, for people.
        before: Value of the version in production, where it compares.
        contest: The direct comparison with it, if it rests on one.
    """

    replace: bool
    reasons: list[str]
    before: float | None = None
    contest: Contest | None = None


def decide(settings: PromotionSettings, new: Measured, before: Measured | str | None) -> Decision:
    """Applies the rule to values of different evaluations.

    Args:
        settings: The rule's numbers.
        new: The new retriever's evaluation.
        before: The evaluation of the version in production; its name, where the two do not compare; None without one.
    """
    enough, reasons = _enough(settings, new)
    if before is None:
        deserved, why = _as_first(settings, new)
        return Decision(enough and deserved, reasons + why)
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


def _as_first(settings: PromotionSettings, new: Measured) -> tuple[bool, list[str]]:
    if settings.first == "any":
        return True, ["Nothing is in production yet."]
    deserved, reasons = deserves_to_be_first(new.leads)
    return deserved, [
        "Nothing is in production yet. A first version must be significantly better than its un-tuned backbone, and it or its "
        "hybrid search significantly better than BM25.",
        *reasons,
    ]


def decide_contest(
    settings: PromotionSettings, new: Measured, contest: Contest, before: Measured | str | None
) -> Decision:
    """Applies the rule to one evaluation of both: better on the target, not significantly worse on any guard.

    Args:
        settings: The rule's numbers.
        new: The new retriever's evaluation.
        contest: The comparison with the version in production.
        before: As for `decide`. Where the contest has no value of the target, that evaluation's counts; where that does
            not compare, `decide` judges the target.
    """
    old = before.value if contest.value is None and isinstance(before, Measured) else contest.value
    target = _on_target(settings, new, old) if old is not None else decide(settings, new, before)
    reasons = list(target.reasons)
    guards = [pair for pair in contest.pairs if pair.is_guard]
    failed = [pair for pair in guards if pair.is_worse(settings.significance)]
    reasons += _guard_sentences(guards, settings)
    if contest.left_out:
        reasons.append(f"Production was not measured anew on {', '.join(contest.left_out)}: no guard.")
    reasons += contest.remarks
    return Decision(target.replace and not failed, reasons, target.before, contest)


def _on_target(settings: PromotionSettings, new: Measured, old: float) -> Decision:
    enough, reasons = _enough(settings, new)
    gain = new.value - old
    better = gain > _ROUNDING and gain >= settings.minimum_gain - _ROUNDING
    return Decision(enough and better, [*reasons, _target_sentence(settings, new, old)], old)


def _enough(settings: PromotionSettings, new: Measured) -> tuple[bool, list[str]]:
    enough = new.value >= settings.minimum_value - _ROUNDING
    if enough and not settings.minimum_value:
        return True, []
    relation = "reaches" if enough else "stays below"
    return enough, [f"{settings.metric} {new.value:.4f} {relation} the required {settings.minimum_value:.4f}."]


def _target_sentence(settings: PromotionSettings, new: Measured, old: float) -> str:
    gain, required = new.value - old, settings.minimum_gain
    verdict = "is better than production" if gain > _ROUNDING else "is not better than production"
    demand = ""
    if gain > _ROUNDING and gain < required - _ROUNDING:
        verdict, demand = "is better than production, but not by enough", f", where {required:+.4f} is required"
    elif abs(gain) <= _ROUNDING:
        verdict = "is as good as production, not better"
    values = f"{settings.metric} {new.value:.4f} against {old:.4f}, {gain:+.4f}"
    return f"On {new.place[1]}, which decides, the new retriever {verdict}: {values}{demand}."


def _guard_sentences(guards: list[Pair], settings: PromotionSettings) -> list[str]:
    level, sentences = settings.significance, []
    for pair in guards:
        if pair.difference < 0:
            figures = f"{pair.metric} {pair.difference:+.4f}, {p_equals(pair.p)}"
            meaning = "significantly worse" if pair.is_worse(level) else "worse, but not significantly"
            sentences.append(f"On {pair.split}, a guard, it is {meaning}: {figures}.")
    if not sentences:
        sentences.append(f"It is worse on none of the guards: {', '.join(pair.split for pair in guards)}.")
    tested = next((pair.metric for pair in guards), settings.metric)
    if tested != settings.metric:
        sentences.append(f"Guards are judged by {tested}, the metric that the evaluation tested.")
    return sentences
