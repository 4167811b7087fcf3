"""The step `promote`: decides, publishes accordingly, and writes both down."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.metrics.content import check_content
from llm_retriever.metrics.conventions import EVALUATION_FILE
from llm_retriever.promotion.evidence import Contest, Measured, contest, measured, target_of
from llm_retriever.promotion.page import Outcome, decision_markdown
from llm_retriever.promotion.publication import (
    SAME_RUN,
    Made,
    publish_new,
    publish_refreshed,
    refreshed_model,
    with_index,
)
from llm_retriever.promotion.rule import Decision, decide, decide_contest
from llm_retriever.promotion.wholeness import check_retriever, check_whole_hybrid, check_whole_index
from llm_retriever.settings import PromotionSettings
from llm_retriever.stores.alias import MovedError
from llm_retriever.stores.opening import manifest_of
from llm_retriever.stores.records import Records
from llm_retriever.stores.registry import Registry, Version, model_digest

_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class _Case:
    """The case to decide: the rule's numbers, the measurements, the comparison with production, what the run made."""

    settings: PromotionSettings
    new: Measured
    against: Contest | None
    made: Made


def promote(
    settings: PromotionSettings,
    evaluation: Path,
    retriever: Path,
    index: Path,
    decision: Path,
    refreshed: Path | None = None,
) -> tuple[str, bool]:
    """Decides, publishes what the rule says, and writes the decision with its reasons as Markdown.

    Two runs that decide at the same time compare with the same version; the later one notices, and decides again. The
    record of what was judged is written last, where `source_fingerprint` is set.

    Args:
        settings: The rule's numbers, and the URI of the published versions; "" = decide, publish nothing.
        evaluation: Output of `evaluate`.
        retriever: The retriever that was evaluated.
        index: The index that was evaluated.
        decision: The Markdown file to write.
        refreshed: Output of `evaluate`: the index in production, brought to the new collection.

    Returns:
        The URI of the version that is in production afterwards ("" if none), and whether it is the new one.

    Raises:
        InputError: Retriever or index is not whole, the evaluation is of another retriever or lacks a split or metric, or
            the URI cannot be used. Nothing is published then.
    """
    file = evaluation / EVALUATION_FILE
    content = files.read_json(file, hint="give the output of evaluate")
    check_content(content, file)
    new = measured(content, target_of(content, settings), settings.metric, file, settings.system)
    against = contest(content, settings, file)
    listing = manifest_of(retriever)
    card = check_retriever(retriever, listing).digest()
    if content.get("card") != card:
        raise InputError("is of another retriever", file=file, field="card", hint=SAME_RUN)
    check_whole_index(index, card, content.get("collection"))
    check_whole_hybrid(evaluation, card, str(content.get("collection")))
    renewed = with_index(refreshed)
    if renewed is not None:
        check_whole_index(renewed / "index", None, content.get("collection"))
    if not settings.uri:
        outcome = Outcome(
            decide_contest(settings, new, against, against.version) if against else decide(settings, new, None)
        )
        files.write_text(decision, decision_markdown(settings, new, outcome))
        return "", False
    made = Made(retriever, index, evaluation, card, model_digest(listing, index), renewed)
    outcome = _settle(_Case(settings, new, against, made))
    files.write_text(decision, decision_markdown(settings, new, outcome))
    _write_record(settings, outcome)
    return outcome.uri, outcome.decision.replace


def _settle(case: _Case) -> Outcome:
    """Decides and publishes; decides again if another run has moved the alias meanwhile.

    Raises:
        MovedError: Other runs keep moving it; what this one has published stays.
    """
    registry = Registry(case.settings.uri)
    for _ in range(_ATTEMPTS):
        seen = registry.alias()
        before = registry.production(seen)
        outcome = _judged(case, registry, before)
        if outcome.version != outcome.before:
            return outcome
        published = _published(case.settings, case.new, case.made, registry, outcome)
        if published is None:
            return outcome
        version, reason = published
        try:
            registry.put_into_production(version, reason, seen)
        except MovedError as error:
            lost = error
        else:
            return dataclasses.replace(outcome, version=version, uri=registry.uri_of(version))
    raise lost


def _published(
    settings: PromotionSettings, new: Measured, made: Made, registry: Registry, outcome: Outcome
) -> tuple[Version, dict[str, Any]] | None:
    """Publishes what is to go into production, with the reason; None if everything stays as it is."""
    (collection, split, _), before, against = new.place, outcome.before, outcome.decision.contest
    reason: dict[str, Any] = {"collection": collection, "split": split}
    if outcome.decision.replace:
        version = publish_new(registry, made, f"{settings.metric} {new.value:.4f} on {split}")
        return version, reason | {settings.metric: new.value}
    if outcome.is_to_refresh and before and against and made.refreshed:
        value = against.value
        explanation = f"{before.name} with a new index"
        explanation += "" if value is None else f", {settings.metric} {value:.4f} on {split}"
        version = publish_refreshed(registry, before, made.evaluation, made.refreshed, explanation)
        return version, reason | {settings.metric: value, "refreshed_from": before.name}
    return None


def _judged(case: _Case, registry: Registry, before: Version | None) -> Outcome:
    """Decides as things stand, before anything is published; `version` differs from `before` only if all is done."""
    if before is None or before.model != case.made.model:
        return _compared(case, registry, before)
    if (earlier := _of_an_earlier_attempt(case, registry, before)) is not None:
        return earlier
    known = Decision(False, [f"This retriever and index are in production already, as {before.name}."])
    return Outcome(known, before, before, registry.uri_of(before))


def _of_an_earlier_attempt(case: _Case, registry: Registry, now: Version) -> Outcome | None:
    """Recovers what this very run decided and published before it was killed; None if production is not its work."""
    if registry.manifest(now, "evaluation") != manifest_of(case.made.evaluation):
        return None
    name = registry.alias().content.get("previous")
    before = next((version for version in registry.versions() if version.name == name), None)
    if name and before is None:
        return None
    outcome = _compared(case, registry, before)
    reason = f"It is in production already, as {now.name}: this very evaluation put it there."
    decision = dataclasses.replace(outcome.decision, reasons=[*outcome.decision.reasons, reason])
    done = dataclasses.replace(outcome, decision=decision, version=now, uri=registry.uri_of(now))
    return done if decision.replace else None


def _compared(case: _Case, registry: Registry, before: Version | None) -> Outcome:
    """Applies the rule to a version that is or was in production."""
    settings, new, against, made = case.settings, case.new, case.against, case.made
    if before is None:
        return Outcome(decide(settings, new, None))
    done = _is_refreshed(registry, before, against, made)
    if against is not None and (done or before.name == against.version):
        decision = decide_contest(settings, new, against, _measured_before(registry, before, new, settings))
        is_open = made.refreshed is not None and not done and not decision.replace and _may_refresh(settings)
        note = _index_note(settings, against, made, before, done)
        return Outcome(decision, before, before, registry.uri_of(before), is_open, note)
    decision = decide(settings, new, _measured_before(registry, before, new, settings))
    if against is not None:
        moved = f"The evaluation compared with {against.version}, which is in production no more."
        decision = dataclasses.replace(decision, reasons=[moved, *decision.reasons])
    return Outcome(decision, before, before, registry.uri_of(before))


def _is_refreshed(registry: Registry, before: Version, against: Contest | None, made: Made) -> bool:
    """Whether the version in production is what this very run refreshed, before it was killed."""
    if against is None or made.refreshed is None or not before.refreshed_from:
        return False
    model = refreshed_model(registry, before, made.refreshed)
    return (before.refreshed_from, before.model) == (against.version, model)


def _may_refresh(settings: PromotionSettings) -> bool:
    return settings.refresh and bool(settings.source_fingerprint)


def _index_note(settings: PromotionSettings, against: Contest, made: Made, before: Version, done: bool) -> str:
    if made.refreshed is None:
        return "The index in production holds this corpus already."
    passages = f"{against.encoded:,} passages were encoded for it, {against.reused:,} were in the old one unchanged"
    if done or _may_refresh(settings):
        source = before.refreshed_from if done else before.name
        return f"The retriever of {source} got an index of the new collection: {passages}."
    why = "this is no retraining" if settings.refresh else "refresh is off"
    return f"The index in production is of an older collection, and stays so because {why}."


def _measured_before(registry: Registry, before: Version, new: Measured, settings: PromotionSettings) -> Measured | str:
    """Value of the same metric for the version in production; its name where that was measured elsewhere."""
    content = registry.evaluation(before)
    try:
        old = measured(content, new.place[1], settings.metric, registry.uri_of(before), settings.system)
    except InputError:
        return before.name
    return old if old.place == new.place else before.name


def _write_record(settings: PromotionSettings, outcome: Outcome) -> None:
    if not settings.source_fingerprint:
        return
    name = outcome.version.name if outcome.version else ""
    Records(settings.uri).write(settings.source_fingerprint, outcome.decision.replace, name, outcome.all_reasons())
