"""Only shards that belong to nobody any more are cleared away."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import pytest

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.indexing.shard_store import place_of
from llm_retriever.indexing.shards import Shard
from llm_retriever.promotion.cleanup import sweep
from llm_retriever.promotion.versions import main
from llm_retriever.stores.opening import open_store
from llm_retriever.stores.registry import Registry

DAY = 86_400.0


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/root"


def encoded(root: str, name: str, tmp_path: Path, shards: int = 2) -> list[Shard]:
    """Shards as an encoding leaves them below `index_shards_uri`, in a folder of their own."""
    place = place_of(f"{root}/shards", files.digest(name), tmp_path / "draft" / name)
    made = []
    for number in range(shards):
        directory = place.growing(number)
        vectors, ids = directory / f"vectors-{number:05d}.npy", directory / f"ids-{number:05d}.txt"
        vectors.write_text(f"{name} {number}")
        ids.write_text("p\n")
        sums = files.sha256_of_file(vectors), files.sha256_of_file(ids)
        shard = Shard(vectors.name, ids.name, 1, sums[0], sums[1], 1.0, 1, 1, 0.1)
        place.accept(number, shard)
        made.append(shard)
    return made


def folder(name: str) -> str:
    return files.digest(name)[:32]


def published(root: str, shards: list[Shard], tmp_path: Path, shards_uri: str = "") -> str:
    """A registry with one version, whose index consists of these shards."""
    manifest = {"shards": [dataclasses.asdict(shard) for shard in shards], "shards_uri": shards_uri}
    files.write_json(tmp_path / "index" / "manifest.json", manifest)
    Registry(f"{root}/published").publish({"index": tmp_path / "index"}, "model", "card")
    return f"{root}/published"


def left(root: str) -> set[str]:
    return {entry.key.split("/")[0] for entry in open_store(f"{root}/shards").list()}


def test_what_belongs_to_no_published_version_goes_when_it_is_old(root: str, tmp_path: Path) -> None:
    uri = published(root, encoded(root, "in production", tmp_path), tmp_path)
    encoded(root, "failed", tmp_path)
    later = time.time() + 8 * DAY
    found = sweep(f"{root}/shards", [uri], days=7, delete=False, now=later)
    assert {row.name: bool(row.spared) for row in found} == {folder("failed"): False, folder("in production"): True}
    assert left(root) == {folder("failed"), folder("in production")}
    assert sweep(f"{root}/shards", [uri], days=9, delete=True, now=later)[0].spared == "was written to lately"
    assert left(root) == {folder("failed"), folder("in production")}
    sweep(f"{root}/shards", [uri], days=7, delete=True, now=later)
    assert left(root) == {folder("in production")}
    assert len(open_store(f"{root}/shards").list()) == 6


def test_a_version_whose_index_names_its_shards_keeps_them(root: str, tmp_path: Path) -> None:
    encoded(root, "named", tmp_path)
    uri = published(root, [], tmp_path, f"{root}/shards/{folder('named')}")
    found = sweep(f"{root}/shards", [uri], days=0, delete=True, now=time.time() + DAY)
    assert "belongs to the published version" in found[0].spared
    assert left(root) == {folder("named")}


def test_shards_that_are_only_partly_those_of_a_version_are_not_its_own(root: str, tmp_path: Path) -> None:
    first = encoded(root, "first", tmp_path)
    uri = published(root, first[:1], tmp_path)
    sweep(f"{root}/shards", [uri], days=0, delete=True, now=time.time() + DAY)
    assert left(root) == set()


def test_a_shard_that_was_never_completed_goes_too(root: str, tmp_path: Path) -> None:
    uri = published(root, [], tmp_path)
    open_store(f"{root}/shards").write(f"{folder('killed')}/vectors-00000.npy", b"half")
    sweep(f"{root}/shards", [uri], days=0, delete=True, now=time.time() + DAY)
    assert left(root) == set()


def test_what_is_not_ours_stays(root: str, tmp_path: Path) -> None:
    uri = published(root, [], tmp_path)
    store = open_store(f"{root}/shards")
    foreign = [f"{folder('x')}/notes.txt", f"{'g' * 32}/vectors-00000.npy", "shard-00000.json", "abc/shard-00000.json"]
    for key in (*foreign, f"{folder('x')}/vectors-00000.npy"):
        store.write(key, b"{}")
    before = store.list()
    found = sweep(f"{root}/shards", [uri], days=0, delete=True, now=time.time() + DAY)
    assert [(row.name, row.spared) for row in found] == [(folder("x"), "holds other files, as notes.txt")]
    assert store.list() == before


def test_several_registries_may_have_been_made_of_the_same_shards(root: str, tmp_path: Path) -> None:
    one = published(f"{root}/one", encoded(root, "one", tmp_path), tmp_path / "1")
    two = published(f"{root}/two", encoded(root, "two", tmp_path), tmp_path / "2")
    sweep(f"{root}/shards", [one, two], days=0, delete=True, now=time.time() + DAY)
    assert left(root) == {folder("one"), folder("two")}


def test_a_registry_without_versions_is_rather_a_wrong_uri(root: str, tmp_path: Path) -> None:
    encoded(root, "failed", tmp_path)
    with pytest.raises(InputError, match="no version is published there; check the URI"):
        sweep(f"{root}/shards", [f"{root}/publised"], days=0, delete=True)
    assert left(root) == {folder("failed")}


def test_drafts_of_killed_writers_count_and_go(tmp_path: Path) -> None:
    uri = published(str(tmp_path), [], tmp_path)
    directory = tmp_path / "shards" / folder("killed")
    directory.mkdir(parents=True)
    draft = directory / ".vectors-00000.npy.0123456789abcdef.partial"
    draft.write_bytes(bytes(1000))
    assert sweep(str(tmp_path / "shards"), [uri], days=1, delete=True)[0].spared == "was written to lately"
    os.utime(draft, (0, 0))
    assert sweep(str(tmp_path / "shards"), [uri], days=1, delete=True)[0].size == 1000
    assert not directory.exists()


def test_the_command_shows_first_and_deletes_when_told(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = published(root, encoded(root, "in production", tmp_path), tmp_path)
    encoded(root, "failed", tmp_path)
    flags = ["sweep-shards", f"{root}/shards", "--published", uri]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert said.count("was written to lately") == 2
    assert said.splitlines()[-1].startswith("would delete: 0 of 2 folders")
    assert main([*flags, "--older-than-days=0"]) == 0
    said = capsys.readouterr().out
    assert f"would delete {folder('failed')}  0.000 GB, 0.0 days old\n" in said
    assert f"keeps {folder('in production')}" in said
    assert len(left(root)) == 2
    assert main([*flags, "--older-than-days=0", "--delete"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("deleted: 1 of 2 folders")
    assert left(root) == {folder("in production")}


@pytest.mark.parametrize("days", ["-1", "nan"])
def test_an_age_that_would_delete_everything_is_refused(tmp_path: Path, days: str) -> None:
    with pytest.raises(SystemExit):
        main(["sweep-shards", str(tmp_path), "--published", str(tmp_path), f"--older-than-days={days}"])
