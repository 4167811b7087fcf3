"""A source's fingerprint changes exactly when the source does, and one that was judged already is no news."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.fingerprint_sources.__main__ import STEP
from llm_retriever.errors import InputError
from llm_retriever.promotion.fingerprint import State, backbone_fingerprint, corpus_fingerprint, state
from llm_retriever.promotion.versions import main
from llm_retriever.stores.opening import open_store
from llm_retriever.stores.records import Records, recipe_of
from llm_retriever.stores.registry import Registry
from tests.s3_server import S3Server


def test_a_directory_is_known_by_names_and_contents(beir_source: Path) -> None:
    before = corpus_fingerprint(str(beir_source))
    (beir_source / "corpus.jsonl").touch()
    assert corpus_fingerprint(str(beir_source)) == before
    with (beir_source / "corpus.jsonl").open("a") as corpus:
        corpus.write('{"_id": "new", "text": "one more"}\n')
    changed = corpus_fingerprint(str(beir_source))
    assert changed != before
    (beir_source / "corpus.jsonl").rename(beir_source / "passages.jsonl")
    assert corpus_fingerprint(str(beir_source)) not in {before, changed}


def test_the_demo_is_known_by_the_versions_that_it_is_made_of() -> None:
    assert corpus_fingerprint("demo:python-docs") == corpus_fingerprint("demo:python-docs")


def test_a_backbone_is_known_by_its_files_or_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = backbone_fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 1}')
    assert backbone_fingerprint(str(tmp_path)) != before
    assert backbone_fingerprint("scratch:tiny") != backbone_fingerprint("scratch:small")


def test_a_source_that_does_not_exist_ends_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no such directory"):
        corpus_fingerprint(str(tmp_path / "none"))
    assert STEP.execute(["--corpus-uri", str(tmp_path / "none"), "--backbone", "scratch:tiny"]) == 2
    assert capsys.readouterr().err.startswith("fingerprint_sources: ")


def test_the_step_prints_what_it_found(beir_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STEP.execute(["--corpus-uri", str(beir_source), "--backbone", "scratch:tiny"]) == 0
    corpus, backbone = corpus_fingerprint(str(beir_source)), backbone_fingerprint("scratch:tiny")
    assert capsys.readouterr().out.splitlines() == [
        f"corpus_fingerprint: {corpus}",
        f"backbone_fingerprint: {backbone}",
        f"fingerprint: {state(corpus, backbone, '', '').fingerprint}",
        "changed: True",
        "production_uri: ",
    ]


@pytest.mark.parametrize("option", ["--corpus-uri", "--backbone"])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_an_empty_place_is_refused_and_no_digest_of_nothing(
    place: str, option: str, s3: S3Server, beir_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    uri = str(tmp_path / "empty") if place == "local" else f"s3://{s3.bucket}/nothing/here"
    given = {"--corpus-uri": str(beir_source), "--backbone": "scratch:tiny"} | {option: uri}
    assert STEP.execute([word for pair in given.items() for word in pair]) == 2
    assert "nothing is there; check the path or URI" in capsys.readouterr().err


# ---- whether it was judged already


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty registry."""
    if request.param == "local":
        return str(tmp_path / "published")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/published"


def test_only_the_very_same_fingerprint_that_was_judged_is_no_change(uri: str) -> None:
    first = state("c", "b", "r", uri)
    assert first.changed
    Records(uri).write(first.fingerprint, False, "", ["Not good enough."])
    assert state("c", "b", "r", uri) == State(first.fingerprint, False, "")
    for other in (("c2", "b", "r"), ("c", "b2", "r"), ("c", "b", "r2"), ("cb", "", "r")):
        found = state(*other, uri)
        assert found.changed
        assert found.fingerprint != first.fingerprint


def test_a_second_recipe_does_not_disturb_the_first_and_a_source_that_goes_back_has_changed(uri: str) -> None:
    for given in (("c", "b", "r"), ("c", "b", "r2")):
        Records(uri).write(state(*given, uri).fingerprint, False, "", [])
    assert not any(state("c", "b", recipe, uri).changed for recipe in ("r", "r2"))
    assert state("c2", "b", "r2", uri).changed
    Records(uri).write(state("c2", "b", "r", uri).fingerprint, False, "", [])
    assert not state("c2", "b", "r", uri).changed
    assert state("c", "b", "r", uri).changed
    assert not state("c", "b", "r2", uri).changed


def test_a_judged_source_is_news_again_where_what_it_led_to_is_in_production_no_more(uri: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("x")
    version = Registry(uri).publish({"retriever": tmp_path / "made"}, "model", "card")
    Registry(uri).put_into_production(version, {})
    Records(uri).write(state("c", "b", "r", uri).fingerprint, True, version.name, [])
    assert not state("c", "b", "r", uri).changed
    open_store(uri).delete("production.json")
    assert state("c", "b", "r", uri).changed


def test_without_a_registry_everything_is_news(tmp_path: Path) -> None:
    assert state("c", "b", "", "") == State(state("c", "b", "", str(tmp_path)).fingerprint, True, "")


def test_a_retraining_without_a_registry_is_bad_input(beir_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STEP.execute(["--corpus-uri", str(beir_source), "--backbone=scratch:tiny", "--recipe=one"]) == 2
    said = capsys.readouterr().err
    assert 'field "published_uri": retraining needs a place for its records; give the directory' in said


def test_a_record_that_was_forgotten_is_news_again(uri: str) -> None:
    Records(uri).write(state("c", "b", "r", uri).fingerprint, False, "", [])
    assert main(["forget", uri]) == 0
    assert state("c", "b", "r", uri).changed


def test_the_version_in_production_is_named_without_a_slash_at_its_end(uri: str, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("x")
    version = Registry(uri).publish({"retriever": tmp_path / "made"}, "model", "card")
    assert state("c", "b", "r", uri).production_uri == ""
    Registry(uri).put_into_production(version, {})
    assert state("c", "b", "r", f"{uri}/").production_uri == f"{uri}/versions/{version.name}"


def test_a_record_that_is_not_one_is_bad_input(uri: str) -> None:
    recipe = recipe_of(state("c", "b", "r", uri).fingerprint)
    open_store(uri).write(f"judged/{recipe}.json", b"[]")
    with pytest.raises(InputError, match=rf"judged/{recipe}.json: not a JSON object; remove it"):
        state("c", "b", "r", uri)


def test_the_step_says_whether_anything_changed(
    uri: str, beir_source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--corpus-uri", str(beir_source), "--backbone=scratch:tiny", "--recipe=one", f"--published-uri={uri}"]
    assert STEP.execute(flags) == 0
    said = dict(line.split(": ") for line in capsys.readouterr().out.splitlines()[:-1])
    assert said["changed"] == "True"
    Records(uri).write(said["fingerprint"], False, "", [])
    for recipe, changed in (("one", "False"), ("two", "True")):
        assert STEP.execute([*flags, f"--recipe={recipe}"]) == 0
        assert f"changed: {changed}\n" in capsys.readouterr().out


def test_kubeflow_gets_a_truth_value(tmp_path: Path, beir_source: Path) -> None:
    message = {
        "inputs": {"parameterValues": {"corpus_uri": str(beir_source), "backbone": "scratch:tiny"}},
        "outputs": {"outputFile": str(tmp_path / "executor_output.json")},
    }
    assert STEP.execute(["--executor-input", json.dumps(message)]) == 0
    answer = json.loads((tmp_path / "executor_output.json").read_text())["parameterValues"]
    assert (answer["changed"], answer["production_uri"]) == (True, "")
