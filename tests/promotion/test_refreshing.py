"""A retriever that stays in production gets its index of the new collection, and the record says what was judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.promote.__main__ import STEP
from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.promotion.versions import main
from llm_retriever.stores.opening import fetched, open_store
from llm_retriever.stores.records import Records
from llm_retriever.stores.registry import Registry, Version
from tests.promotion.conftest import Run, in_production, kill_when_it_writes
from tests.s3_server import REFUSED, S3Server

RETRAINING = {"source_fingerprint": "f1"}
BETTER, WORSE = ([0.6, 0.5, 0.4], [0.5, 0.4, 0.3]), ([0.4, 0.3, 0.2], [0.5, 0.4, 0.35])


def grown(tmp_path: Path, published: str, **given: Any) -> Run:
    """A run on a collection that has grown, whose retriever is worse than production."""
    splits = {"test": given.pop("values", WORSE)}
    return Run(tmp_path / "new", 0.3, seed=2, collection="c2").compare(published, splits, index=True)


def contents(uri: str) -> dict[str, bytes]:
    with fetched(uri) as copy:
        return {p.relative_to(copy).as_posix(): p.read_bytes() for p in sorted(copy.rglob("*")) if p.is_file()}


def stored(uri: str) -> list[tuple[str, str]]:
    return [(entry.key, entry.etag) for entry in open_store(uri).list() if not entry.key.startswith("judged/")]


def weights_of(run: Run) -> bytes:
    return (run.retriever / "model" / "model.safetensors").read_bytes()


def version_of(uri: str) -> Version:
    version = in_production(uri)
    assert version is not None
    return version


def test_a_kept_retriever_is_published_with_the_refreshed_index(uri: str, old: Run, tmp_path: Path) -> None:
    before, _ = old.promote(uri)
    new = grown(tmp_path, before)
    after, promoted = new.promote(uri, **RETRAINING)
    assert not promoted
    assert after != before
    version = version_of(uri)
    assert after == f"{uri}/versions/{version.name}"
    assert (version.refreshed_from, version.card) == (before.rpartition("/")[2], old.card.digest())
    assert contents(f"{after}/retriever") == contents(f"{before}/retriever")
    made = {path.name: path.read_bytes() for path in (new.refreshed / "index").iterdir()}
    assert contents(f"{after}/index").items() >= made.items()
    assert new.decision.startswith(
        f"# Kept: the retriever of {before.rpartition('/')[2]} stays in production, with a new"
    )
    assert "10 passages were encoded for it, 50 were in the old one unchanged." in new.decision
    assert f"`{after}`" in new.decision
    alias = json.loads(open_store(uri).read("production.json"))
    assert alias["previous"] == alias["refreshed_from"] == before.rpartition("/")[2]
    assert alias["ndcg@10"] == pytest.approx(1.25 / 3)


def test_the_evaluation_of_a_refreshed_version_is_that_of_the_retriever_in_it(
    uri: str, old: Run, tmp_path: Path
) -> None:
    before, _ = old.promote(uri)
    new = grown(tmp_path, before)
    after, _ = new.promote(uri, **RETRAINING)
    content = Registry(uri).evaluation(version_of(uri))
    split = content["splits"]["test"]
    assert split["systems"] == {
        "retriever": new.content["splits"]["test"]["systems"]["production"],
        "BM25": new.content["splits"]["test"]["systems"]["BM25"],
    }
    assert split["per_query"]["retriever"] == {"q0": 0.5, "q1": 0.4, "q2": 0.35}
    assert (content["collection"], split["collection"], split["comparisons"]) == ("c2", "c2", [])
    assert content["card"] == old.card.digest()
    assert contents(f"{after}/evaluation")["runs/test/retriever.trec"].endswith(b"production\n")


def test_the_next_retriever_is_compared_with_what_was_measured_of_the_refreshed_one(
    uri: str, old: Run, tmp_path: Path
) -> None:
    grown(tmp_path, old.promote(uri)[0]).promote(uri, **RETRAINING)
    for name, value, promoted in (("worse", 0.41, False), ("better", 0.42, True)):
        run = Run(tmp_path / name, value, seed=len(name), collection="c2", queries=3)
        assert run.promote(uri)[1] is promoted
        assert "The difference to production" in run.decision


def test_a_rollback_goes_back_to_the_old_index_and_pruning_spares_both(
    uri: str, old: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, _ = old.promote(uri)
    after, _ = grown(tmp_path, before).promote(uri, **RETRAINING)
    assert main(["prune", uri, "--keep", "1"]) == 0
    assert main(["rollback", uri, "--previous"]) == 0
    assert version_of(uri).name == before.rpartition("/")[2]
    assert main(["rollback", uri, "--previous"]) == 0
    assert version_of(uri).name == after.rpartition("/")[2]
    open_store(before).delete("")
    assert contents(f"{after}/retriever")["model/model.safetensors"] == weights_of(old)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("splits", [{"test": BETTER}, {"test": ([0.5, 0.4, 0.2], [0.5, 0.4, 0.3])}])
def test_what_is_promoted_or_has_nothing_to_refresh_makes_no_refreshed_version(
    uri: str, old: Run, tmp_path: Path, splits: Any
) -> None:
    before, _ = old.promote(uri)
    is_better = splits["test"] is BETTER
    new = Run(tmp_path / "new", 0.3, seed=2, collection="c2").compare(before, splits, index=is_better)
    assert new.promote(uri, **RETRAINING)[1] is is_better
    assert not any(version.refreshed_from for version in Registry(uri).versions())
    assert len(Registry(uri).versions()) == 1 + is_better


def test_kept_without_refresh_leaves_the_registry_as_it_was(uri: str, old: Run, tmp_path: Path) -> None:
    before, _ = old.promote(uri)
    as_it_was, new = stored(uri), grown(tmp_path, before)
    assert new.promote(uri, refresh=False, **RETRAINING) == (before, False)
    assert stored(uri) == as_it_was
    assert "stays so because refresh is off" in new.decision


def test_promoting_again_after_a_refresh_changes_nothing(uri: str, old: Run, tmp_path: Path) -> None:
    new = grown(tmp_path, old.promote(uri)[0])
    after, _ = new.promote(uri, **RETRAINING)
    as_it_was = stored(uri)
    assert new.promote(uri, **RETRAINING) == (after, False)
    assert stored(uri) == as_it_was
    assert "got an index of the new collection" in new.decision


@pytest.mark.parametrize("last_words", ["/index/published.json", "/version.json", "/production.json"])
def test_a_killed_refresh_is_completed_by_the_next_run(s3: S3Server, old: Run, tmp_path: Path, last_words: str) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    before, _ = old.promote(uri)
    new = grown(tmp_path, before)
    kill_when_it_writes(s3, last_words, [*new.flags(uri), "--source-fingerprint=f1"])
    assert version_of(uri).name == before.rpartition("/")[2]
    assert Records(uri).recipes() == []
    begun = {entry.key.split("/")[1] for entry in open_store(uri).list("versions")}
    after, _ = new.promote(uri, **RETRAINING)
    assert version_of(uri).name == after.rpartition("/")[2]
    assert {entry.key.split("/")[1] for entry in open_store(uri).list("versions")} == begun | {after.rpartition("/")[2]}
    assert len(begun) == 2
    assert contents(f"{after}/retriever") == contents(f"{before}/retriever")


def test_on_s3_no_byte_of_the_retriever_passes_through_here(s3: S3Server, old: Run, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    new = grown(tmp_path, old.promote(uri)[0])
    s3.requests.clear()
    new.promote(uri, **RETRAINING)
    assert [r for r in s3.requests if r[0] == "GET" and r[1].endswith("model.safetensors")] == []
    assert [r for r in s3.requests if r[0] == "PUT" and r[1].endswith("model.safetensors")]


def test_a_refused_copy_leaves_production_as_it_was(s3: S3Server, old: Run, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    before, _ = old.promote(uri)
    new = grown(tmp_path, before)
    s3.fault = lambda request: (
        ("403 Forbidden", REFUSED)
        if request["REQUEST_METHOD"] == "PUT" and "/retriever/model/" in request["PATH_INFO"]
        else None
    )
    with pytest.raises(InputError, match="access is refused"):
        new.promote(uri, source_fingerprint="f1")
    s3.fault = None
    assert version_of(uri).name == before.rpartition("/")[2]
    assert Records(uri).recipes() == []


def test_a_rollback_after_refreshed_nights_takes_the_model_out(
    uri: str, old: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = old.promote(uri)
    bad = Run(tmp_path / "bad", 0.5, seed=3)
    published, promoted = bad.promote(uri)
    assert promoted
    for night in range(3):
        new = Run(tmp_path / f"night {night}", 0.3, seed=4 + night, collection=f"c{night}")
        new.compare(published, {"test": WORSE}, index=True)
        new.write_refreshed(100 + night, published)
        published, promoted = new.promote(uri, **RETRAINING)
        assert not promoted
        assert "rollback " + uri + " --previous` goes back to the older index." in new.decision
    assert (version_of(uri).card, len(Registry(uri).versions())) == (bad.card.digest(), 5)
    assert main(["prune", uri, "--keep", "1"]) == 0
    assert main(["list", uri]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if "a rollback goes here" in line]
    assert [line.split()[0] for line in marked] == [first.rpartition("/")[2]]
    assert main(["rollback", uri]) == 0
    assert version_of(uri).card == old.card.digest()
    assert contents(f"{first}/retriever")["model/model.safetensors"] == weights_of(old)
    assert main(["rollback", uri]) == 2
    assert "no earlier model is known" in capsys.readouterr().err
    assert main(["rollback", uri, "--previous"]) == 0
    assert version_of(uri).name == published.rpartition("/")[2]


def test_a_published_retriever_that_lacks_a_file_is_not_copied(uri: str, old: Run, tmp_path: Path) -> None:
    before, _ = old.promote(uri)
    new = grown(tmp_path, before)
    open_store(before).delete("retriever/model/model.safetensors")
    with pytest.raises(InputError, match=r"retriever/model/model.safetensors: is missing or has another size"):
        new.promote(uri, **RETRAINING)


def test_a_version_promoted_meanwhile_is_not_replaced_by_a_refreshed_one(
    s3: S3Server, old: Run, tmp_path: Path
) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    new, best = grown(tmp_path, old.promote(uri)[0]), Run(tmp_path / "best", 0.6, seed=3)

    def the_other_run_finishes(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith("version.json"):
            s3.fault = None
            assert best.promote(uri)[1]

    s3.fault = the_other_run_finishes
    published, promoted = new.promote(uri, **RETRAINING)
    assert not promoted
    assert version_of(uri).card == best.card.digest()
    assert published.endswith(version_of(uri).name)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("refreshed.json", {"version": "another"}, r'refreshed.json: field "version": is of another version'),
        (
            "index/manifest.json",
            {"card": "another"},
            r'refreshed/index/manifest.json: field "card": is of another retriever',
        ),
    ],
)
def test_a_refreshed_index_of_something_else_is_bad_input(
    tmp_path: Path, old: Run, file: str, content: dict[str, str], problem: str
) -> None:
    uri = str(tmp_path / "published")
    new = grown(tmp_path, old.promote(uri)[0])
    files.write_json(new.refreshed / file, files.read_json(new.refreshed / file) | content)
    with pytest.raises(InputError, match=problem):
        new.promote(uri, **RETRAINING)
    assert len(Registry(uri).versions()) == 1


# ---- the record


@pytest.mark.parametrize("kind", ["first", "better", "worse", "refreshed", "unchanged", "too low"])
def test_the_record_says_what_was_judged(uri: str, old: Run, tmp_path: Path, kind: str) -> None:
    run, settings = old, {"minimum_value": 0.9 if kind == "too low" else 0.0}
    if kind not in ("first", "too low"):
        before, _ = old.promote(uri)
        index = kind == "refreshed"
        if kind != "unchanged":
            values = BETTER if kind == "better" else WORSE
            run = Run(tmp_path / "new", 0.3, seed=2, collection="c2").compare(before, {"test": values}, index=index)
        run.content["costs"] = {"seconds": 12.5}
        run.save()
    published, promoted = run.promote(uri, source_fingerprint="f1", **settings)
    record = Records(uri).of("f1")
    assert record.pop("when").endswith("+00:00")
    reasons = record.pop("reasons")
    assert record == {"fingerprint": "f1", "promoted": promoted, "version": published.rpartition("/")[2]}
    assert promoted is (kind in ("first", "better"))
    assert reasons
    assert all(reason in run.decision for reason in reasons)
    assert any("got an index" in reason for reason in reasons) is (kind == "refreshed")


def test_without_a_fingerprint_nothing_is_written_down_or_refreshed(uri: str, old: Run, tmp_path: Path) -> None:
    before, _ = old.promote(uri, source_fingerprint="f1")
    as_it_was, record, new = stored(uri), Records(uri).of("f1"), grown(tmp_path, before)
    assert new.promote(uri) == (before, False)
    assert stored(uri) == as_it_was
    assert Records(uri).recipes() == ["f1"]
    assert Records(uri).of("f1") == record
    assert "stays so because this is no retraining" in new.decision


def test_the_step_takes_the_refreshed_index_and_ends_well(
    tmp_path: Path, old: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "published")
    new = grown(tmp_path, old.promote(uri)[0])
    assert STEP.execute([*new.flags(uri), "--source-fingerprint=f1", "--guards=test", "--significance=0.1"]) == 0
    assert f"published_uri: {uri}/versions/{version_of(uri).name}\npromoted: False\n" in capsys.readouterr().out
    assert version_of(uri).refreshed_from
    assert Records(uri).of("f1")["fingerprint"] == "f1"
