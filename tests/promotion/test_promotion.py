"""Promotion: a worse version never replaces a better one, and the alias never points to half a version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from components.promote.__main__ import STEP
from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.models.card import RetrieverCard
from llm_retriever.stores.opening import fetched, open_store
from llm_retriever.stores.records import Records
from tests.promotion.conftest import Run, in_production, kill_when_it_writes
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server


def test_the_first_version_is_promoted_and_can_be_used(uri: str, old: Run) -> None:
    published, promoted = old.promote(uri)
    version = in_production(uri)
    assert promoted
    assert version is not None
    assert published == f"{uri}/versions/{version.name}"
    with fetched(f"{published}/retriever") as copy:
        assert RetrieverCard.load(copy) == old.card
    assert "# Promoted: " in old.decision
    assert "Nothing is in production yet." in old.decision
    assert "| BM25 | 0.2000 |" in old.decision


def test_the_alias_tells_people_what_is_in_production(uri: str, old: Run) -> None:
    old.promote(uri)
    alias = json.loads(open_store(uri).read("production.json"))
    assert alias.pop("since").endswith("+00:00")
    version = in_production(uri)
    assert version is not None
    assert alias == {
        "version": version.name,
        "path": f"versions/{version.name}",
        "card": old.card.digest(),
        "earlier": {},
        "collection": "c1",
        "split": "test",
        "ndcg@10": 0.4,
    }


def test_a_better_version_replaces_and_the_old_one_stays_published(uri: str, old: Run, tmp_path: Path) -> None:
    before, _ = old.promote(uri)
    new = Run(tmp_path / "new", 0.45, seed=2)
    after, promoted = new.promote(uri, minimum_gain=0.05)
    assert promoted
    assert after != before
    assert (version := in_production(uri)) is not None
    assert version.card == new.card.digest()
    with fetched(f"{before}/retriever") as copy:
        assert RetrieverCard.load(copy) == old.card
    assert "- The difference to production, +0.0500, reaches the required +0.0500." in new.decision
    assert "| in production before | 0.4000 |" in new.decision


@pytest.mark.parametrize(
    ("value", "settings", "reason"),
    [
        (0.39, {}, "-0.0100, stays below the required +0.0000."),
        (0.41, {"minimum_gain": 0.02}, "+0.0100, stays below the required +0.0200."),
        (0.41, {"minimum_value": 0.5}, "ndcg@10 0.4100 stays below the required 0.5000."),
    ],
)
def test_a_version_that_does_not_reach_the_rule_is_not_published(
    uri: str, old: Run, tmp_path: Path, value: float, settings: dict[str, float], reason: str
) -> None:
    before, _ = old.promote(uri)
    stored = open_store(uri).list()
    new = Run(tmp_path / "new", value, seed=2)
    assert new.promote(uri, **settings) == (before, False)
    assert open_store(uri).list() == stored
    assert reason in new.decision
    assert new.decision.startswith(f"# Kept: {before.rpartition('/')[2]} stays in production")


def test_a_first_version_below_the_required_value_is_not_published(uri: str, old: Run) -> None:
    assert old.promote(uri, minimum_value=0.5) == ("", False)
    assert open_store(uri).list() == []
    assert old.decision.startswith("# Not promoted")


def test_a_slightly_worse_version_replaces_if_the_rule_allows_it(uri: str, old: Run, tmp_path: Path) -> None:
    old.promote(uri)
    assert Run(tmp_path / "new", 0.39, seed=2).promote(uri, minimum_gain=-0.01)[1]


def test_promoting_the_same_again_does_nothing(uri: str, old: Run) -> None:
    before, _ = old.promote(uri)
    stored = open_store(uri).list()
    old.content["costs"] = {"seconds": 12.5}
    old.save()
    assert old.promote(uri) == (before, False)
    assert open_store(uri).list() == stored
    assert "in production already" in old.decision


ELSEWHERE = [{"collection": "c2"}, {"queries": 49}]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_numbers_of_other_queries_do_not_replace_production(
    uri: str, old: Run, tmp_path: Path, place: dict[str, Any]
) -> None:
    before, _ = old.promote(uri)
    new = Run(tmp_path / "new", 0.9, seed=2, **place)
    assert new.promote(uri) == (before, False)
    assert "its numbers are not comparable" in new.decision
    assert "Set minimum_value" in new.decision


@pytest.mark.parametrize(("value", "promoted"), [(0.31, True), (0.29, False)])
def test_on_other_queries_the_required_value_alone_decides(
    uri: str, old: Run, tmp_path: Path, value: float, promoted: bool
) -> None:
    old.promote(uri)
    new = Run(tmp_path / "new", value, seed=2, collection="c2")
    assert new.promote(uri, minimum_value=0.3)[1] is promoted
    assert "not comparable" in new.decision


def test_a_split_that_production_was_not_measured_on_does_not_compare(uri: str, old: Run, tmp_path: Path) -> None:
    before, _ = old.promote(uri)
    new = Run(tmp_path / "new", 0.9, seed=2)
    new.content["splits"] = {"dl19": new.content["splits"]["test"]}
    new.save()
    assert new.promote(uri) == (before, False)
    assert "not comparable" in new.decision


def test_the_metric_and_split_of_the_settings_decide(uri: str, old: Run, tmp_path: Path) -> None:
    old.promote(uri)
    new = Run(tmp_path / "new", 0.30, seed=2)
    new.content["splits"]["test"]["systems"]["retriever"]["mrr@10"] = 0.21
    new.save()
    assert new.promote(uri, metric="mrr@10", split="test")[1]


def test_without_a_uri_nothing_is_published_and_the_decision_says_so(old: Run) -> None:
    assert old.promote("") == ("", False)
    assert old.decision.startswith("# Good enough to promote")
    assert "Nothing was published: no URI is set." in old.decision


# ---- interrupted in the middle


def test_a_refused_upload_leaves_production_as_it_was(s3: S3Server, old: Run, tmp_path: Path) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    before, _ = old.promote(uri)
    new = Run(tmp_path / "new", 0.5, seed=2)
    s3.fault = lambda request: (
        ("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
        if request["REQUEST_METHOD"] == "PUT" and "/index/" in request["PATH_INFO"]
        else None
    )
    with pytest.raises(InputError, match="access is refused"):
        new.promote(uri)
    s3.fault = None
    assert not (new.directory / "decision.md").exists()
    version = in_production(uri)
    assert version is not None
    assert before.endswith(version.name)


@pytest.mark.parametrize("last_words", ["/index/published.json", "/version.json", "/production.json"])
def test_a_kill_leaves_production_whole_and_the_next_run_completes_the_version(
    s3: S3Server, old: Run, tmp_path: Path, last_words: str
) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    before, _ = old.promote(uri)
    new = Run(tmp_path / "new", 0.5, seed=2)
    kill_when_it_writes(s3, last_words, new.flags(uri))
    version = in_production(uri)
    assert version is not None
    assert before.endswith(version.name)
    begun = {entry.key.split("/")[1] for entry in open_store(uri).list("versions")}
    after, promoted = new.promote(uri)
    assert promoted
    assert (version := in_production(uri)) is not None
    assert version.card == new.card.digest()
    assert {entry.key.split("/")[1] for entry in open_store(uri).list("versions")} == begun
    assert after.rpartition("/")[2] in begun


@pytest.mark.parametrize("kind", ["first", "better by itself", "better than production"])
def test_a_run_that_is_killed_after_the_alias_has_moved_reports_what_it_did(
    s3: S3Server, old: Run, tmp_path: Path, kind: str
) -> None:
    uri, new = f"s3://{s3.bucket}/retrievers", old
    if kind != "first":
        before, _ = old.promote(uri)
        new = Run(tmp_path / "new", 0.5, seed=2)
    if kind == "better than production":
        new.compare(before, {"test": ([0.6, 0.5, 0.4], [0.5, 0.4, 0.3])})
    kill_when_it_writes(s3, "/judged/f1.json", [*new.flags(uri), "--source-fingerprint=f1"])
    version = in_production(uri)
    assert version is not None
    assert version.card == new.card.digest()
    new.directory.joinpath("decision.md").unlink(missing_ok=True)
    stored = open_store(uri).list()
    assert new.promote(uri, source_fingerprint="f1") == (f"{uri}/versions/{version.name}", True)
    assert [entry for entry in open_store(uri).list() if not entry.key.startswith("judged/")] == stored
    assert new.decision.startswith(f"# Promoted: {version.name}")
    assert "this very evaluation put it there" in new.decision
    assert ("| target, guard |" in new.decision) is (kind == "better than production")
    assert Records(uri).of("f1")["promoted"] is True


def test_a_version_begun_on_an_earlier_day_is_completed_under_its_name(tmp_path: Path, old: Run) -> None:
    published = Path(old.promote(str(tmp_path / "published"))[0])
    begun = published.rename(published.with_name(f"2001-01-01-{published.name[-12:]}"))
    (begun / "version.json").unlink()
    (begun / "index" / "published.json").unlink()
    (tmp_path / "published" / "production.json").unlink()
    assert old.promote(str(tmp_path / "published")) == (str(begun), True)
    assert list(begun.parent.iterdir()) == [begun]


@pytest.mark.parametrize("moment", ["version.json", "production.json"])
def test_a_version_promoted_meanwhile_is_compared_with(s3: S3Server, old: Run, tmp_path: Path, moment: str) -> None:
    """Two runs decide at the same time; the better one finishes first, if need be between the other's last two requests."""
    uri = f"s3://{s3.bucket}/retrievers"
    old.promote(uri)
    good, best = Run(tmp_path / "good", 0.5, seed=2), Run(tmp_path / "best", 0.6, seed=3)

    def the_other_run_finishes(request: dict[str, Any]) -> None:
        if request["REQUEST_METHOD"] == "PUT" and request["PATH_INFO"].endswith(moment):
            s3.fault = None
            assert best.promote(uri)[1]

    s3.fault = the_other_run_finishes
    published, promoted = good.promote(uri)
    version = in_production(uri)
    assert version is not None
    assert not promoted
    assert version.card == best.card.digest()
    assert published.endswith(version.name)
    assert "-0.1000, stays below" in good.decision


# ---- bad input


def test_an_alias_to_a_version_that_is_not_complete_is_bad_input(uri: str, old: Run, tmp_path: Path) -> None:
    published, _ = old.promote(uri)
    open_store(published).delete("version.json")
    with pytest.raises(InputError, match=r'production.json: field "version": names the version .*, which is not comp'):
        Run(tmp_path / "new", 0.9, seed=2).promote(uri)


def test_an_alias_that_somebody_else_wrote_is_bad_input(uri: str, old: Run) -> None:
    open_store(uri).write("production.json", b"v1\n")
    with pytest.raises(InputError, match=r"production.json: not a JSON object; restore it, or remove the alias"):
        old.promote(uri)


def spoil_card(run: Run) -> None:
    run.content["card"] = "another"


def spoil_index(run: Run) -> None:
    manifest = run.index / "manifest.json"
    files.write_json(manifest, files.read_json(manifest) | {"card": "another"})


def spoil_weights(run: Run) -> None:
    save_file({"weights": np.full(4, 9, np.float32)}, run.retriever / "model" / "model.safetensors")


def spoil_metric(run: Run) -> None:
    run.content["splits"]["test"]["systems"]["retriever"].pop("ndcg@10")


def spoil_splits(run: Run) -> None:
    run.content["splits"] = {}


@pytest.mark.parametrize(
    ("spoil", "settings", "problem"),
    [
        (spoil_card, {}, r'evaluation.json: field "card": is of another retriever; give the outputs of one'),
        (spoil_index, {}, r'index/manifest.json: field "card": is of another retriever'),
        (
            spoil_weights,
            {},
            r'/retriever: field "weights": the weights are not those that the card belongs to; give the',
        ),
        (spoil_metric, {}, r"field \"metric\": has no 'ndcg@10' of the retriever; use one of mrr@10"),
        (spoil_splits, {}, r"field \"split\": has no split ''; evaluate again"),
        (lambda run: None, {"split": "dev"}, r"field \"split\": has no split 'dev'; use one of test"),
        (lambda run: None, {"uri": "ftp://x"}, "ftp:// is not a kind of URI"),
        (lambda run: None, {"uri": "s3://nowhere/x"}, "s3://nowhere/x: the bucket does not exist"),
    ],
)
def test_bad_input_promotes_nothing(s3: S3Server, old: Run, spoil: Any, settings: dict[str, str], problem: str) -> None:
    spoil(old)
    old.save()
    with pytest.raises(InputError, match=problem):
        old.promote(**{"uri": f"s3://{s3.bucket}/retrievers", **settings})
    assert open_store(f"s3://{s3.bucket}").list() == []
    assert not (old.directory / "decision.md").exists()


# ---- the step


def test_the_step_runs_with_plain_flags(uri: str, old: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert STEP.execute(old.flags(uri)) == 0
    version = in_production(uri)
    assert version is not None
    assert capsys.readouterr().out == f"published_uri: {uri}/versions/{version.name}\npromoted: True\n"


def test_a_kept_version_ends_the_step_well(uri: str, old: Run, tmp_path: Path) -> None:
    old.promote(uri)
    worse = Run(tmp_path / "worse", 0.1, seed=2)
    assert STEP.execute(worse.flags(uri)) == 0
    assert "# Kept: " in worse.decision


def test_the_step_runs_with_kubeflows_message(uri: str, old: Run, tmp_path: Path) -> None:
    inputs = {
        name: {"artifacts": [{"uri": str(old.directory / name)}]}
        for name in ("retriever", "index", "evaluation", "refreshed")
    }
    message = {
        "inputs": {"parameterValues": {"uri": uri, "minimum_gain": 0, "metric": "ndcg@10"}, "artifacts": inputs},
        "outputs": {
            "artifacts": {"decision": {"artifacts": [{"name": "decision", "uri": str(tmp_path / "decision.md")}]}},
            "outputFile": str(tmp_path / "executor_output.json"),
        },
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())
    version = in_production(uri)
    assert version is not None
    assert answer["parameterValues"] == {"published_uri": f"{uri}/versions/{version.name}", "promoted": True}
    assert (tmp_path / "decision.md").read_text().startswith("# Promoted")


def test_credentials_of_the_environment_appear_nowhere(
    s3: S3Server, old: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"s3://{s3.bucket}/retrievers"
    assert STEP.execute([*old.flags(uri), "--debug"]) == 0
    s3.fault = lambda request: (
        "403 Forbidden",
        f"<Error><Code>No</Code><Message>{ACCESS_KEY}</Message></Error>".encode(),
    )
    assert STEP.execute([*old.flags(uri), "--debug"]) == 1
    s3.fault = None
    said = capfd.readouterr()
    with fetched(uri) as copy:
        written = [path.read_bytes() for root in (copy, tmp_path) for path in root.rglob("*") if path.is_file()]
    for secret in (ACCESS_KEY, SECRET_KEY):
        assert secret not in said.out + said.err
        assert secret.encode() not in b"".join(written)
