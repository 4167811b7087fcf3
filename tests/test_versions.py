"""Going back to an earlier version, and clearing old ones away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_retriever.errors import InputError
from llm_retriever.registry import Registry, Version, in_production
from llm_retriever.store import open_store
from llm_retriever.versions import main


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
    return Registry(uri).publish(folders, model=content, card=content)


@pytest.fixture
def versions(uri: str, tmp_path: Path) -> list[Version]:
    """Three versions, each of which was in production after the other."""
    made = [published(uri, tmp_path / "made", content) for content in ("one", "two", "three")]
    for version in made:
        Registry(uri).put_into_production(version, {"reason": "better"})
    return made


def alias(uri: str) -> dict[str, str]:
    return json.loads(open_store(uri).read("production.json"))


def test_a_rollback_goes_to_the_version_before_and_another_one_back(
    uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    _, two, three = versions
    assert main(["rollback", uri]) == 0
    assert capsys.readouterr().out.strip() == f"in production: {two.name}"
    assert Registry(uri).production() == two
    assert alias(uri)["previous"] == three.name
    assert in_production(uri).endswith(two.name)
    assert main(["rollback", uri]) == 0
    assert Registry(uri).production() == three


def test_any_version_can_be_named(uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollback", uri, "--to", versions[0].name]) == 0
    capsys.readouterr()
    assert main(["list", uri]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("*")]
    assert marked == [f"* {versions[0].name}"]


def test_a_version_that_does_not_exist_is_refused_and_nothing_moves(
    uri: str, versions: list[Version], capsys: pytest.CaptureFixture[str]
) -> None:
    before = alias(uri)
    assert main(["rollback", uri, "--to", "2020-01-01-000000000000"]) == 2
    assert versions[0].name in capsys.readouterr().err
    assert alias(uri) == before


def test_without_an_earlier_version_there_is_nothing_to_go_back_to(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no earlier version"):
        Registry(uri).roll_back()
    Registry(uri).put_into_production(published(uri, tmp_path, "only"), {})
    with pytest.raises(InputError, match="no earlier version"):
        Registry(uri).roll_back()


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
