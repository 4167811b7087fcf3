"""Renders the decision for people: what, the numbers, why, the index, and where the version in production is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llm_retriever.files.markdown import code, escaped, table
from llm_retriever.metrics.conventions import p_value
from llm_retriever.promotion.evidence import Contest, Measured, Pair
from llm_retriever.promotion.rule import Decision
from llm_retriever.settings import PromotionSettings
from llm_retriever.stores.registry import Version

_COLUMNS = ("split", "role", "queries", "new", "production", "difference", "95 % interval", "p", "verdict")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A decision and its effects.

    Attributes:
        decision: Whether to replace, and why.
        before: What was in production.
        version: What is in production afterwards; None if nothing.
        uri: Where that is.
        is_to_refresh: Whether the version that stays gets its index of the new collection.
        index_note: What became of the index, where the old version was measured too; a sentence.
    """

    decision: Decision
    before: Version | None = None
    version: Version | None = None
    uri: str = ""
    is_to_refresh: bool = False
    index_note: str = ""

    def all_reasons(self) -> list[str]:
        """The reasons, and the sentence on the index."""
        return [*self.decision.reasons, *filter(None, [self.about_index()])]

    def about_index(self) -> str:
        """States the effect on the index; "" where there is nothing to say."""
        if self.decision.replace:
            return "The new retriever was published with its own index." if self.version else ""
        return self.index_note


def decision_markdown(settings: PromotionSettings, new: Measured, outcome: Outcome) -> str:
    """Renders the decision as Markdown.

    Args:
        settings: The rule's numbers.
        new: The new retriever's evaluation.
        outcome: What was decided and done.
    """
    decision, contest = outcome.decision, outcome.decision.contest
    lines = [f"# {escaped(_headline(settings, outcome))}", ""]
    if contest:
        lines += [*_contest_table(settings, contest), "", *_baselines(settings, new)]
    else:
        lines += [*_value_table(settings, new, decision.before), ""]
    lines += ["## Why", "", *(f"- {escaped(reason)}" for reason in decision.reasons), ""]
    if outcome.about_index():
        lines += ["## The index", "", escaped(outcome.about_index()), ""]
    lines += ["## In production", "", *_where(settings, outcome)]
    return "\n".join(lines) + "\n"


def _headline(settings: PromotionSettings, outcome: Outcome) -> str:
    replace, version, before = outcome.decision.replace, outcome.version, outcome.before
    if not settings.uri:
        return "Good enough to promote" if replace else "Not good enough to promote"
    if version is None:
        return "Not promoted"
    if replace:
        return f"Promoted: {version.name}"
    if before is not None and version != before:
        return f"Kept: the retriever of {before.name} stays in production, with a new index"
    return f"Kept: {version.name} stays in production"


def _contest_table(settings: PromotionSettings, contest: Contest) -> list[str]:
    metric = contest.pairs[0].metric
    rows = [_row(pair, settings.significance) for pair in contest.pairs]
    legend = f"Values are {metric}; p is that of the paired t-test, significant below {settings.significance:g}."
    return [*_table(_COLUMNS, rows, numbers=range(2, 8)), "", legend]


def _row(pair: Pair, significance: float) -> Sequence[str]:
    roles = [name for name, is_it in (("target", pair.is_target), ("guard", pair.is_guard)) if is_it]
    low_high = f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}" if pair.interval else "–"
    return (
        pair.split,
        ", ".join(roles) or "–",
        f"{pair.queries:,}",
        f"{pair.new:.4f}",
        f"{pair.old:.4f}",
        f"{pair.difference:+.4f}",
        low_high,
        p_value(pair.p),
        pair.verdict(significance),
    )


def _baselines(settings: PromotionSettings, new: Measured) -> list[str]:
    others = ", ".join(f"{escaped(name)} {value:.4f}" for name, value in sorted(new.others.items()))
    return [f"Baselines on {escaped(new.place[1])}, {settings.metric}: {others}.", ""] if others else []


def _value_table(settings: PromotionSettings, new: Measured, before: float | None) -> list[str]:
    rows = [("new retriever", new.value)]
    rows += [("in production before", before)] if before is not None else []
    rows += sorted(new.others.items())
    shown = [(name, f"{value:.4f}") for name, value in rows]
    return _table(("", f"{settings.metric} on {new.place[1]}"), shown, numbers=range(1, 2))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: range) -> list[str]:
    shown = [[cell if column in numbers else escaped(cell) for column, cell in enumerate(row)] for row in rows]
    return table([*map(escaped, head)], shown, left=numbers.start)


def _where(settings: PromotionSettings, outcome: Outcome) -> list[str]:
    if not settings.uri:
        return ["Nothing was published: no URI is set."]
    if outcome.version is None:
        return ["Nothing."]
    lines = [code(outcome.uri)]
    if outcome.before is not None and outcome.before != outcome.version:
        is_same_model = outcome.before.card == outcome.version.card
        rollback = f"llm-retriever versions rollback {settings.uri}{' --previous' if is_same_model else ''}"
        what = "goes back to the older index" if is_same_model else "goes back to it"
        lines += ["", f"Before: {escaped(outcome.before.name)}; {code(rollback)} {what}."]
    return lines
