"""The gate: better on the target, and not significantly worse on any guard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.errors import InputError
from llm_retriever.stores.records import Records
from llm_retriever.stores.registry import Registry
from tests.promotion.conftest import Run, in_production

Values = tuple[Sequence[float], Sequence[float]]
QUERIES = 40
OLD = [0.2 + 0.01 * i for i in range(QUERIES)]


def by(difference: float, noise: float = 0.0) -> Values:
    """Values of the new retriever and the old one, which differ by `difference` on average, and by `noise` around that."""
    return [old + difference + (noise if i % 2 else -noise) for i, old in enumerate(OLD)], OLD


BETTER, EQUAL = by(0.02, noise=0.01), (OLD, OLD)
WORSE, MAYBE_WORSE = by(-0.02, noise=0.01), by(-0.02, noise=0.3)


@pytest.fixture
def published(tmp_path: Path, old: Run) -> str:
    """URI of the version in production, in a local registry."""
    return old.promote(str(tmp_path / "published"))[0]


def decided(tmp_path: Path, published: str, splits: dict[str, Values], **settings: Any) -> tuple[Run, bool]:
    new = Run(tmp_path / "new", 0.5, seed=2, collection="c2").compare(published, splits)
    uri, promoted = new.promote(published.partition("/versions/")[0], **settings)
    version = in_production(published.partition("/versions/")[0])
    assert version is not None
    assert uri.endswith(version.name)
    assert promoted == (uri != published)
    return new, promoted


def test_better_on_the_target_and_equal_on_the_guards_is_promoted(tmp_path: Path, published: str) -> None:
    new, promoted = decided(tmp_path, published, {"test": BETTER, "dl19": EQUAL})
    assert promoted
    assert new.decision.startswith("# Promoted: ")
    assert (
        "- On test, which decides, the new retriever is better than production: ndcg@10 0.4150 against" in new.decision
    )
    assert "- It is worse on none of the guards: test, dl19." in new.decision


def test_queries_that_production_was_trained_on_are_told_of_among_the_reasons(tmp_path: Path, published: str) -> None:
    new = Run(tmp_path / "new", 0.5, seed=2, collection="c2").compare(published, {"dev": WORSE, "test": EQUAL})
    new.content["production"]["trained_on"] = {"dev": 36}
    new.save()
    new.promote(published.partition("/versions/")[0], source_fingerprint="f1")
    why = new.decision.partition("## Why")[2].partition("##")[0]
    told = "36 of 40 queries of dev were in the training of the version in production alone, which favours it."
    assert f"- {told}" in why
    assert told in Records(published.partition("/versions/")[0]).of("f1")["reasons"]
    assert "queries of test were in" not in new.decision


@pytest.mark.parametrize(("target", "reason"), [(EQUAL, "is as good as production"), (WORSE, "is not better")])
def test_what_is_not_better_on_the_target_is_kept_back(
    tmp_path: Path, published: str, target: Values, reason: str
) -> None:
    new, promoted = decided(tmp_path, published, {"test": target, "dl19": BETTER})
    assert not promoted
    assert reason in new.decision


def test_a_gain_below_the_required_one_is_not_enough(tmp_path: Path, published: str) -> None:
    new, promoted = decided(tmp_path, published, {"test": BETTER}, minimum_gain=0.03)
    assert not promoted
    assert "but not by enough: ndcg@10 0.4150 against 0.3950, +0.0200, where +0.0300 is required." in new.decision


def test_a_required_loss_does_not_let_a_worse_one_pass(tmp_path: Path, published: str) -> None:
    assert not decided(tmp_path, published, {"test": MAYBE_WORSE}, minimum_gain=-0.5)[1]


def test_a_value_below_the_required_one_is_not_enough(tmp_path: Path, published: str) -> None:
    new, promoted = decided(tmp_path, published, {"test": BETTER}, minimum_value=0.6)
    assert not promoted
    assert "ndcg@10 0.4150 stays below the required 0.6000." in new.decision


def test_significantly_worse_on_a_guard_is_kept_back(tmp_path: Path, published: str) -> None:
    new, promoted = decided(tmp_path, published, {"test": BETTER, "dl19": WORSE})
    assert not promoted
    assert new.decision.startswith(f"# Kept: {published.rpartition('/')[2]} stays in production")
    assert (
        "- On dl19, a guard, it is significantly worse: ndcg@10 -0.0200, p\N{NO-BREAK SPACE}<\N{NO-BREAK SPACE}0.001."
        in new.decision
    )
    assert "The index in production holds this corpus already." in new.decision


def test_insignificantly_worse_on_a_guard_is_promoted(tmp_path: Path, published: str) -> None:
    new, promoted = decided(tmp_path, published, {"test": BETTER, "dl19": MAYBE_WORSE})
    assert promoted
    assert (
        "- On dl19, a guard, it is worse, but not significantly: ndcg@10 -0.0200, p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.6"
        in new.decision
    )


def test_the_significance_of_the_settings_counts(tmp_path: Path, published: str) -> None:
    assert not decided(tmp_path, published, {"test": BETTER, "dl19": MAYBE_WORSE}, significance=0.9)[1]


def test_a_split_that_is_no_guard_cannot_speak_against(tmp_path: Path, published: str) -> None:
    new, promoted = decided(tmp_path, published, {"test": BETTER, "dl19": WORSE, "dl20": EQUAL}, guards=" dl20,test ")
    assert promoted
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in new.decision.splitlines() if "|" in line]
    assert [row[1] for row in cells] == ["role", "---", "target, guard", "–", "guard"]
    assert cells[3][0] == "dl19"
    assert cells[3][3:] == [
        "0.3750",
        "0.3950",
        "-0.0200",
        "-0.0232 to -0.0168",
        "<\N{NO-BREAK SPACE}0.001",
        "significantly worse",
    ]


def test_the_target_of_the_settings_decides(tmp_path: Path, published: str) -> None:
    splits = {"test": MAYBE_WORSE, "dl19": BETTER}
    assert decided(tmp_path, published, splits, split="dl19", guards="test")[1]


def test_a_guard_that_was_not_evaluated_is_bad_input(tmp_path: Path, published: str) -> None:
    new = Run(tmp_path / "new", 0.5, seed=2).compare(published, {"test": BETTER, "dl19": EQUAL})
    with pytest.raises(InputError, match=r"field \"guards\": has no split 'dl21'; use one of test, dl19"):
        new.promote(str(tmp_path / "published"), guards="test,dl21")


def test_a_guard_is_checked_before_there_is_anything_to_guard(tmp_path: Path, old: Run) -> None:
    with pytest.raises(InputError, match=r"field \"guards\": has no split 'dl21'"):
        old.promote(str(tmp_path / "published"), guards="dl21")


def test_a_guard_that_production_was_not_measured_on_is_bad_input(tmp_path: Path, published: str) -> None:
    new = Run(tmp_path / "new", 0.5, seed=2).compare(published, {"test": BETTER, "elsewhere": EQUAL})
    del new.content["splits"]["elsewhere"]["systems"]["production"]
    new.save()
    with pytest.raises(
        InputError, match=r"field \"guards\": the version in production was not measured on .*elsewhere"
    ):
        new.promote(str(tmp_path / "published"), guards="elsewhere")


def test_a_target_that_production_was_not_measured_on_is_judged_by_its_own_evaluation(tmp_path: Path, old: Run) -> None:
    old.content["splits"]["elsewhere"] = {**old.content["splits"]["test"], "zero_shot": "e", "collection": "e"}
    old.save()
    published, _ = old.promote(str(tmp_path / "published"))
    new = Run(tmp_path / "new", 0.5, seed=2, collection="c2").compare(published, {"test": WORSE})
    new.content["splits"]["elsewhere"] = {
        **old.content["splits"]["elsewhere"],
        "systems": {"retriever": {"ndcg@10": 0.41}},
    }
    new.save()
    assert not new.promote(str(tmp_path / "published"), split="elsewhere")[1]
    assert "On elsewhere, which decides, the new retriever is better than production: ndcg@10 0.4100" in new.decision
    assert "On test, a guard, it is significantly worse" in new.decision
    assert "Production was not measured anew on elsewhere: no guard." in new.decision
    for value, promoted in ((0.40, False), (0.41, True)):
        new.compare(published, {"test": BETTER})
        systems = {"retriever": {"ndcg@10": value}}
        new.content["splits"]["elsewhere"] = {**old.content["splits"]["elsewhere"], "systems": systems}
        new.save()
        assert new.promote(str(tmp_path / "published"), split="elsewhere")[1] is promoted
        assert ("is as good as production, not better" in new.decision) is not promoted


def test_the_metric_of_the_settings_decides_and_guards_are_judged_by_the_tested_one(
    tmp_path: Path, published: str
) -> None:
    new = Run(tmp_path / "new", 0.5, seed=2).compare(published, {"test": EQUAL})
    new.content["splits"]["test"]["systems"]["retriever"]["mrr@10"] = 0.9
    new.save()
    assert new.promote(str(tmp_path / "published"), metric="mrr@10")[1]
    assert "Guards are judged by ndcg@10, the metric that the evaluation tested." in new.decision


def test_where_production_has_moved_on_the_numbers_of_its_own_evaluation_count(tmp_path: Path, published: str) -> None:
    good = Run(tmp_path / "good", 0.5, seed=2, queries=QUERIES).compare(published, {"test": BETTER})
    other = Run(tmp_path / "other", 0.6, seed=3, queries=QUERIES)
    registry = str(tmp_path / "published")
    assert other.promote(registry, minimum_value=0.1)[1]
    assert not good.promote(registry)[1]
    assert f"compared with {published.rpartition('/')[2]}, which is in production no more" in good.decision
    assert "The difference to production, -0.1850, stays below" in good.decision


def test_without_a_registry_the_gate_is_applied_too(tmp_path: Path, published: str) -> None:
    for name, target, headline in (("a", BETTER, "# Good enough"), ("b", EQUAL, "# Not good enough")):
        new = Run(tmp_path / name, 0.5, seed=2).compare(published, {"test": target})
        assert new.promote("") == ("", False)
        assert new.decision.startswith(headline)
    assert [version.name for version in Registry(str(tmp_path / "published")).versions()] == [
        published.rpartition("/")[2]
    ]
