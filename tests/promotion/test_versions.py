"""Going back to an earlier version, and clearing old ones away."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from llm_retriever.errors import InputError
from llm_retriever.promotion.cleanup import clear_abandoned
from llm_retriever.promotion.versions import main
from llm_retriever.stores.opening import open_store
from llm_retriever.stores.records import Records
from llm_retriever.stores.registry import Registry, Version


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "published")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/versions-{request.node.name[-12:].strip('[]-')}"


def published(uri: str, directory: Path, content: str) -> Version:
    for folder in ("retriever", "index", "evaluation"):
        (directory / content / folder).mkdir(parents=True)
        (directory / content / folder / "file").write_text(content)
    folders = {folder: directory / content / folder for folder in ("retriever", "index", "evaluation")}
    return Registry(uri).publish(folders, model=content, card=content, reason=f"ndcg@10 of {content}")


@pytest.fixture
def versions(uri: str, tmp_path: Path) -> list[Version]:
    """Three versions, each of which was in production after the other."""
    made = [published(uri, tmp_path / "made", content) for content in ("one", "two", "three")]
    for version in made:
        Registry(uri).put_into_production(version, {"reason": "better"})
    return made


def alias(uri: str) -> dict[str, str]:
    return json.loads(open_store(uri).read("production.json"))


def test_a_rollback_goes_from_model_to_model_and_the_option_undoes_it(
    uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    _, two, three = versions
    assert main(["rollback", uri]) == 0
    assert capsys.readouterr().out.strip() == f"in production: {two.name}"
    assert Registry(uri).production() == two
    assert alias(uri)["previous"] == three.name
    assert Registry(uri).production() == two
    assert main(["rollback", uri, "--previous"]) == 0
    assert Registry(uri).production() == three
    for _ in range(2):
        assert main(["rollback", uri]) == 0
    assert Registry(uri).production() == versions[0]
    assert main(["rollback", uri]) == 2
    assert "no earlier model is known" in capsys.readouterr().err


def test_a_model_that_was_taken_out_is_nothing_to_go_back_to(uri: str, versions: list[Version], tmp_path: Path) -> None:
    _, two, _ = versions
    registry = Registry(uri)
    assert registry.roll_back() == two
    registry.put_into_production(published(uri, tmp_path / "made", "four"), {"reason": "better"})
    assert registry.roll_back() == two


def test_where_an_earlier_release_wrote_the_alias_the_order_of_publication_counts(
    uri: str, versions: list[Version], tmp_path: Path
) -> None:
    one, two, three = versions
    for second, version in enumerate(versions):
        told = dataclasses.asdict(version) | {"published": f"2026-03-14T00:00:0{second}+00:00"}
        open_store(uri).write(f"{version.key}/version.json", json.dumps(told).encode())
    for current, earlier in ((three, two), (two, one)):
        content = {"version": current.name, "card": current.card}
        open_store(uri).write("production.json", json.dumps(content).encode())
        found = Registry(uri).earlier_model()
        assert found is not None
        assert found.name == earlier.name


def test_any_version_can_be_named(uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", uri, "--to", versions[0].name]) == 0
    capsys.readouterr()
    assert main(["list", uri]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("*")]
    assert [line.split()[1] for line in marked] == [versions[0].name]


def test_a_version_that_does_not_exist_is_refused_and_nothing_moves(
    uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    before = alias(uri)
    assert main(["rollback", uri, "--to", "2020-01-01-000000000000"]) == 2
    assert versions[0].name in capsys.readouterr().err
    assert alias(uri) == before


def test_without_an_earlier_version_there_is_nothing_to_go_back_to(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no earlier model"):
        Registry(uri).roll_back()
    Registry(uri).put_into_production(published(uri, tmp_path, "only"), {})
    with pytest.raises(InputError, match="no earlier model"):
        Registry(uri).roll_back()
    with pytest.raises(InputError, match="no previous version"):
        Registry(uri).previous()


def test_pruning_spares_the_newest_and_those_in_use(uri: str, versions: list[Version], tmp_path: Path) -> None:
    one, _, three = versions
    Registry(uri).put_into_production(one, {})
    assert main(["prune", uri, "--keep", "1"]) == 0
    left = {version.name for version in Registry(uri).versions()}
    newest = max(version.name for version in versions)
    assert left == {one.name, three.name, newest}
    assert Registry(uri).production() == one
    gone = {version.name for version in versions} - left
    assert not any(entry.key.split("/")[1] in gone for entry in open_store(uri).list("versions"))


def test_the_list_says_since_when_and_why_and_which_are_refreshed(
    uri: str, versions: list[Version], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = versions
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "file").write_text("new")
    folders = {"retriever": three, "index": tmp_path / "index", "evaluation": three}
    new = Registry(uri).publish(folders, "m", "three", refreshed_from=three.name, reason="three with a new index")
    Registry(uri).put_into_production(new, {})
    assert main(["list", uri]) == 0
    lines = {line[2:].split()[0]: line for line in capsys.readouterr().out.splitlines()}
    since = alias(uri)["since"]
    assert lines[new.name] == f"* {new.name}  refreshed  in production since {since}: three with a new index"
    assert lines[three.name] == (
        f"  {three.name}  trained    published {three.published}, the one before: ndcg@10 of three"
    )
    assert lines[two.name] == (
        f"  {two.name}  trained    published {two.published}, a rollback goes here: ndcg@10 of two"
    )
    assert lines[one.name] == f"  {one.name}  trained    published {one.published}: ndcg@10 of one"
    assert main(["rollback", uri]) == 0
    assert main(["list", uri]) == 0
    assert "in production since" in (said := capsys.readouterr().out)
    assert ": ndcg@10 of two; rolled back by hand" in said


def test_versions_of_an_earlier_release_are_listed_too(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = published(uri, tmp_path / "made", "one")
    old = {"name": version.name, "model": "m", "card": "c"}
    open_store(uri).write(f"{version.key}/version.json", json.dumps(old).encode())
    assert main(["list", uri]) == 0
    assert capsys.readouterr().out.startswith(f"  {version.name}  trained    published ")


def test_versions_of_one_day_are_in_the_order_of_their_publication(uri: str, tmp_path: Path) -> None:
    made = [published(uri, tmp_path / "made", content) for content in ("one", "two", "three")]
    for second, version in enumerate(made):
        told = dataclasses.asdict(version) | {"published": f"2026-03-14T00:00:0{second}+00:00"}
        open_store(uri).write(f"{version.key}/version.json", json.dumps(told).encode())
    assert [version.name for version in Registry(uri).versions()] == [version.name for version in made]


def test_the_record_is_shown_and_can_be_removed(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (("judged", "nothing was judged yet\n"), ("forget", "nothing to forget\n")):
        assert main([command, uri]) == 0
        assert capsys.readouterr().out == said
    for fingerprint in ("f0", "f1"):
        Records(uri).write(fingerprint, False, "2026-03-14-0f1e2d3c4b5a", ["It is not better."])
    assert main(["judged", uri]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said.pop(1).startswith("when: 20")
    assert said == [
        "the latest of 2:",
        "fingerprint: f1",
        "promoted: False",
        "version: 2026-03-14-0f1e2d3c4b5a",
        "- It is not better.",
    ]
    assert main(["forget", uri, "--recipe", "f1"]) == 0
    assert capsys.readouterr().out == "forgotten f1; the next retraining by it trains\n"
    assert Records(uri).recipes() == ["f0"]
    Records(uri).write("f1", True, "", [])
    assert main(["forget", uri]) == 0
    assert Records(uri).recipes() == []


def test_the_latest_record_is_the_one_that_was_written_last(tmp_path: Path) -> None:
    records = Records(str(tmp_path))
    for moment, fingerprint in enumerate(("b", "c", "a")):
        records.write(fingerprint, False, "", [])
        os.utime(tmp_path / "judged" / f"{fingerprint}.json", (moment, moment))
    assert records.recipes() == ["b", "c", "a"]


def test_what_was_never_completed_is_cleared_away_after_a_while(uri: str, versions: list[Version]) -> None:
    registry, store = Registry(uri), open_store(uri)
    for name in ("2001-01-01-0f1e2d3c4b5a", "somebody-elses"):
        store.write(f"versions/{name}/retriever/model.safetensors", b"half")
    store.delete(f"{versions[0].key}/version.json")
    store.delete(f"{versions[2].key}/version.json")  # damaged, but the alias names it
    now = time.time()
    assert clear_abandoned(registry, 7, now + 6 * 86_400) == []
    assert clear_abandoned(registry, 7, now + 8 * 86_400) == sorted(["2001-01-01-0f1e2d3c4b5a", versions[0].name])
    left = {entry.key.split("/")[1] for entry in store.list("versions")}
    assert left == {versions[1].name, versions[2].name, "somebody-elses"}


def test_pruning_says_what_it_did(uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", uri]) == 0
    assert capsys.readouterr().out == "nothing to delete\n"
