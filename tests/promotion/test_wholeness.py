"""What is not whole is neither decided on nor published: the step ends with exit code 2, and production stays."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from components.promote.__main__ import STEP
from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import Manifest
from llm_retriever.stores.opening import open_store
from llm_retriever.stores.registry import Registry
from tests.promotion.conftest import Run, in_production
from tests.s3_server import S3Server

VECTORS, IDS = "index/vectors-00001.npy", "index/ids-00001.txt"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    """Another last byte; the size stays."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def permute(path: Path) -> None:
    np.save(path, np.load(path)[::-1].copy())


def spoil(path: Path) -> None:
    vectors = np.load(path)
    vectors[1, 2] = np.nan
    np.save(path, vectors)


def swap_ids(path: Path) -> None:
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))


def rename(path: Path) -> None:
    path.rename(path.with_suffix(".old"))


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("retriever/model/model.safetensors", Path.unlink, "no such file"),
    ("retriever/model/model.safetensors", cut, "bytes in place of"),
    ("retriever/model/model.safetensors", empty, "not a safetensors file"),
    ("retriever/model/model.safetensors", flip, "the weights are not those that the card belongs to"),
    ("retriever/model", shutil.rmtree, "nothing is there"),
    ("retriever/model/tokenizer.json", Path.unlink, "there is no fast tokenizer"),
    ("retriever/model/tokenizer.json", cut, "not valid JSON"),
    ("retriever/model/tokenizer_config.json", empty, "not valid JSON"),
    ("retriever/model/config.json", Path.unlink, "no such file"),
    ("retriever/retriever_card.json", cut, "not valid JSON"),
    (VECTORS, Path.unlink, "the vectors cannot be read"),
    (VECTORS, rename, "the vectors cannot be read"),
    (VECTORS, cut, "the vectors cannot be read"),
    (VECTORS, empty, "the vectors cannot be read"),
    (VECTORS, permute, "does not have its checksum"),
    (VECTORS, flip, "does not have its checksum"),
    (VECTORS, spoil, "does not have its checksum"),
    (IDS, Path.unlink, "no such file"),
    (IDS, swap_ids, "does not have its checksum"),
    (IDS, empty, "holds 0 ids, the manifest says 3"),
    ("index/manifest.json", cut, "not valid JSON"),
    ("evaluation/evaluation.json", empty, "not valid JSON"),
]


@pytest.mark.parametrize(("name", "damage", "told"), DAMAGES)
def test_damage_is_found_before_anything_is_published(
    tmp_path: Path,
    old: Run,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    told: str,
) -> None:
    uri = str(tmp_path / "published")
    before, _ = old.promote(uri)
    stored = open_store(uri).list()
    new = Run(tmp_path / "new", 0.9, seed=2)
    damage(new.directory / name)
    capsys.readouterr()
    assert STEP.execute(new.flags(uri)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("promote: ")
    assert told in line
    assert open_store(uri).list() == stored
    assert Registry(uri).uri_of(in_production(uri)) == before  # type: ignore[arg-type]
    assert not (new.directory / "decision.md").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_found_even_if_the_manifest_knows_them(
    tmp_path: Path, old: Run, value: float
) -> None:
    path = old.directory / VECTORS
    vectors = np.load(path)
    vectors[1, 2] = value
    np.save(path, vectors)
    manifest = Manifest.load(old.index)
    shards = [*manifest.shards[:-1], dataclasses.replace(manifest.shards[-1], sha256=files.sha256_of_file(path))]
    files.write_json(old.index / "manifest.json", dataclasses.replace(manifest, shards=tuple(shards)).as_json())
    with pytest.raises(InputError, match="the vector in row 1 is not finite"):
        old.promote(str(tmp_path / "published"))


def test_without_a_uri_too_nothing_is_decided_on_what_is_not_whole(old: Run) -> None:
    spoil(old.directory / VECTORS)
    with pytest.raises(InputError, match="does not have its checksum"):
        old.promote("")


def test_an_index_of_another_collection_is_refused(tmp_path: Path, old: Run) -> None:
    old.content["collection"] = "c2"
    old.save()
    with pytest.raises(InputError, match='field "collection": is of another collection'):
        old.promote(str(tmp_path / "published"))


def test_a_damaged_adapter_is_found(tmp_path: Path, old: Run) -> None:
    (old.retriever / "adapter").mkdir()
    (old.retriever / "adapter" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="not a safetensors file"):
        old.promote(str(tmp_path / "published"))


@pytest.mark.parametrize("damage", [Path.unlink, permute, spoil])
def test_a_refreshed_index_is_looked_at_too(tmp_path: Path, old: Run, damage: Callable[[Path], None]) -> None:
    uri = str(tmp_path / "published")
    before, _ = old.promote(uri)
    new = Run(tmp_path / "new", 0.3, seed=2, collection="c2")
    new.compare(before, {"test": ([0.3] * 20, [0.4] * 20)}, index=True)
    damage(new.refreshed / VECTORS)
    with pytest.raises(InputError):
        new.promote(uri, source_fingerprint="f")
    assert Registry(uri).uri_of(in_production(uri)) == before  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["local", "s3"])
@pytest.mark.parametrize("damage", [Path.unlink, permute, swap_ids])
def test_shards_elsewhere_are_looked_at_where_they_lie(
    tmp_path: Path, old: Run, s3: S3Server, kind: str, damage: Callable[[Path], None]
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in (*old.index.glob("vectors-*"), *old.index.glob("ids-*")):
        path.rename(shards / path.name)
    damage(shards / Path(IDS if damage is swap_ids else VECTORS).name)
    place = str(shards)
    if kind == "s3":
        place = f"s3://{s3.bucket}/shards"
        open_store(place).upload(shards)
    content = json.loads((old.index / "manifest.json").read_text())
    files.write_json(old.index / "manifest.json", content | {"shards_uri": place})
    uri = str(tmp_path / "published")
    with pytest.raises(InputError):
        old.promote(uri)
    assert open_store(uri).list() == []
