"""Searching an index: exact, in trec_eval's order, and the same however the vectors are cut into shards."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest

from llm_retriever import files
from llm_retriever.card import Lineage, RetrieverCard
from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.indexing import search
from llm_retriever.indexing.build import write_index
from llm_retriever.indexing.search import Index
from llm_retriever.indexing.shards import Manifest, Shard, write_ids
from llm_retriever.methods import method
from llm_retriever.settings import IndexSettings

CARD = RetrieverCard.of(method("llm-ql"), Lineage("random"), weights="0" * 64)


def write_vectors(
    directory: Path, vectors: np.ndarray, ids: Sequence[str], shards: int = 1, dtype: str = "fp32"
) -> Index:
    """An index of given vectors, cut into equal shards."""
    directory.mkdir(parents=True)
    entries = []
    for i, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        file, names = directory / f"vectors-{i:05d}.npy", directory / f"ids-{i:05d}.txt"
        stored = vectors[rows].astype(np.float16 if dtype == "fp16" else np.float32)
        np.save(file, stored)
        write_ids(names, [ids[row] for row in rows])
        norm = float(np.linalg.norm(stored.astype(np.float32), axis=1).max())
        digests = files.sha256_of_file(file), files.sha256_of_file(names)
        entries.append(Shard(file.name, names.name, len(rows), *digests, norm, 1, 1, 1.0))
    manifest = Manifest(
        "flat", "inner_product", len(vectors), vectors.shape[1], dtype, tuple(entries), CARD.digest(), "f", {}, {}, {}
    )
    files.write_json(directory / "manifest.json", manifest.as_json())
    return Index.open(directory, CARD)


def unit(rows: int, dimension: int = 48, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_definition(queries: np.ndarray, vectors: np.ndarray, ids: Sequence[str], depth: int) -> list[list[str]]:
    """Sorts all passages by the rounded inner product, then by id, both descending."""
    scores = [(q.astype(np.float64) * vectors.astype(np.float64)).sum(axis=1).astype(np.float32) for q in queries]
    return [[i for _, i in sorted(zip(row.tolist(), ids, strict=True), reverse=True)[:depth]] for row in scores]


def names(count: int) -> list[str]:
    return [f"p{i}" for i in np.random.default_rng(5).permutation(count)]


@pytest.mark.parametrize("depth", [1, 10, 150])
def test_search_finds_the_largest_inner_products(tmp_path, depth):
    vectors, queries, ids = unit(700), unit(30, seed=1), names(700)
    scores, found = write_vectors(tmp_path / "index", vectors, ids).search(queries, depth)
    assert scores.dtype == np.float32
    assert scores.shape == (30, depth)
    assert found == by_definition(queries, vectors, ids, depth)
    np.testing.assert_allclose(scores, -np.sort(-(queries @ vectors.T), axis=1)[:, :depth], atol=1e-6)


def test_search_agrees_with_a_faiss_flat_index(tmp_path):
    vectors, queries, ids = unit(2000, 96), unit(50, 96, seed=1), names(2000)
    flat = faiss.IndexFlatIP(96)
    flat.add(vectors)
    expected, rows = flat.search(queries, 20)
    scores, found = write_vectors(tmp_path / "index", vectors, ids, shards=3).search(queries, 20)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert found == [[ids[i] for i in row] for row in rows]


def hard_to_rank() -> tuple[np.ndarray, np.ndarray]:
    """Passages in 40 groups of 30: exact copies, and copies that differ in the last bits only."""
    vectors = np.repeat(unit(40), 30, axis=0)
    nudged = np.random.default_rng(2).random(vectors.shape) < 0.02
    vectors[nudged] = np.nextafter(vectors[nudged], np.float32(1))
    queries = np.concatenate([unit(40)[:25], unit(15, seed=3)])
    order = np.random.default_rng(4).permutation(len(vectors))
    return vectors[order], queries


@pytest.mark.parametrize("shards", [1, 2, 4, 7])
@pytest.mark.parametrize("depth", [1, 10, 45, 1200])
def test_near_ties_are_ranked_alike_in_any_number_of_shards(tmp_path, shards, depth):
    vectors, queries = hard_to_rank()
    ids = names(len(vectors))
    scores, found = write_vectors(tmp_path / "index", vectors, ids, shards).search(queries, depth)
    assert found == by_definition(queries, vectors, ids, depth)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_ranking_does_not_depend_on_the_number_of_queries_at_once(tmp_path, monkeypatch):
    vectors, queries = hard_to_rank()
    index = write_vectors(tmp_path / "index", vectors, names(len(vectors)), shards=2)
    together = index.search(queries, 25)[1]
    assert [index.search(query[None], 25)[1][0] for query in queries] == together
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(search, "CANDIDATES_AT_ONCE", 1)
    assert index.search(queries, 25)[1] == together


def test_a_model_that_maps_everything_to_one_point_is_ranked_by_id(tmp_path):
    vectors, ids = np.repeat(unit(1), 300, axis=0), names(300)
    scores, found = write_vectors(tmp_path / "index", vectors, ids, shards=3).search(unit(2, seed=1), 5)
    assert found == [sorted(ids, reverse=True)[:5]] * 2
    assert (scores == scores[:, :1]).all()


def test_equal_scores_are_ordered_by_id_descending_as_trec_eval_does(tmp_path):
    vectors = np.repeat(unit(1), 5, axis=0)
    index = write_vectors(tmp_path / "index", vectors, ["9", "10", "ä", "z", "Z"])
    assert index.search(unit(1), 5)[1] == [["ä", "z", "Z", "9", "10"]]


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_half_precision_shards_are_searched_exactly(tmp_path, monkeypatch, shards):
    monkeypatch.setattr(search, "ROWS_AT_ONCE", 100)
    vectors, queries, ids = unit(700).astype(np.float16), unit(30, seed=1), names(700)
    index = write_vectors(tmp_path / "index", vectors, ids, shards, dtype="fp16")
    assert index.search(queries, 20)[1] == by_definition(queries, vectors, ids, 20)


def test_vectors_of_any_length_are_compared_by_inner_product(tmp_path):
    vectors, queries = unit(500) * np.linspace(0.01, 300, 500, dtype=np.float32)[:, None], 40 * unit(20, seed=1)
    ids = names(500)
    index = write_vectors(tmp_path / "index", vectors, ids, shards=2)
    assert index.search(queries, 30)[1] == by_definition(queries, vectors, ids, 30)


def test_a_depth_beyond_the_corpus_returns_the_whole_corpus(tmp_path):
    index = write_vectors(tmp_path / "index", unit(9), names(9), shards=4)
    scores, found = index.search(unit(3, seed=1), 1000)
    assert scores.shape == (3, 9)
    assert all(sorted(row) == sorted(names(9)) for row in found)


def test_no_queries_find_nothing(tmp_path):
    scores, found = write_vectors(tmp_path / "index", unit(9), names(9)).search(unit(0), 3)
    assert scores.shape == (0, 3)
    assert found == []


def test_queries_that_cannot_be_compared_are_refused(tmp_path):
    index = write_vectors(tmp_path / "index", unit(9), names(9))
    with pytest.raises(ValueError, match="dimension 48"):
        index.search(unit(2, 47), 3)
    with pytest.raises(ValueError, match="not finite"):
        index.search(np.full((1, 48), np.nan, np.float32), 3)
    with pytest.raises(ValueError, match="depth 0"):
        index.search(unit(2), 0)


def test_an_index_refuses_the_queries_of_another_retriever(tmp_path):
    write_vectors(tmp_path / "index", unit(9), names(9))
    with pytest.raises(InputError, match="made by another retriever"):
        Index.open(tmp_path / "index", dataclasses.replace(CARD, weights="1" * 64))
    with pytest.raises(InputError, match="made by another retriever"):
        Index.open(tmp_path / "index", dataclasses.replace(CARD, query_length=32))


def test_what_is_no_index_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json: no such file; give the output of build_index"):
        Index.open(tmp_path, CARD)


def damage(directory: Path, **changes) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "not an index of format 1"),
        ({"kind": "ivf"}, "not an index of format 1"),
        ({"count": 8}, "do not add up"),
        ({"dtype": "int8"}, "unknown type 'int8'"),
        ({"dimension": 47}, r"vectors-00000\.npy: holds float32 \[9, 48\], the manifest says float32 \[9, 47\]"),
        ({"dtype": "fp16"}, "the manifest says float16"),
        ({"shards": "none"}, 'field "shards"'),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, changes, message):
    write_vectors(tmp_path / "index", unit(9), names(9))
    damage(tmp_path / "index", **changes)
    with pytest.raises(InputError, match=message):
        Index.open(tmp_path / "index", CARD)


def test_a_manifest_cannot_name_files_elsewhere(tmp_path):
    write_vectors(tmp_path / "index", unit(9), names(9))
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    shutil.move(tmp_path / "index" / "vectors-00000.npy", tmp_path / "elsewhere.npy")
    manifest["shards"][0]["file"] = "../elsewhere.npy"
    damage(tmp_path / "index", **manifest)
    with pytest.raises(InputError, match="names a file outside the index"):
        Index.open(tmp_path / "index", CARD)


def test_a_shard_that_is_missing_or_cut_off_is_refused(tmp_path):
    write_vectors(tmp_path / "index", unit(9), names(9), shards=3)
    second = tmp_path / "index" / "vectors-00001.npy"
    second.write_bytes(second.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"vectors-00001\.npy: the vectors cannot be read"):
        Index.open(tmp_path / "index", CARD)
    second.unlink()
    with pytest.raises(InputError, match=r"vectors-00001\.npy: the vectors cannot be read"):
        Index.open(tmp_path / "index", CARD)


def test_ids_that_are_missing_or_too_few_are_refused(tmp_path):
    write_vectors(tmp_path / "index", unit(9), names(9))
    (tmp_path / "index" / "ids-00000.txt").write_text("p1\np2\n")
    with pytest.raises(InputError, match=r"ids-00000\.txt: holds 2 ids, the manifest says 9"):
        Index.open(tmp_path / "index", CARD)
    (tmp_path / "index" / "ids-00000.txt").unlink()
    with pytest.raises(InputError, match=r"ids-00000\.txt: no such file"):
        Index.open(tmp_path / "index", CARD)


def test_a_changed_byte_is_found_by_its_checksum(tmp_path):
    write_vectors(tmp_path / "index", unit(9), names(9), shards=2)
    Index.open(tmp_path / "index", CARD, verify=True)
    with (tmp_path / "index" / "vectors-00001.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x01")
    with pytest.raises(InputError, match=r"vectors-00001\.npy: does not have its checksum"):
        Index.open(tmp_path / "index", CARD, verify=True)


def test_pickled_objects_are_not_loaded(tmp_path):
    write_vectors(tmp_path / "index", unit(9), names(9))
    np.save(tmp_path / "index" / "vectors-00000.npy", np.array([{"a": 1}] * 9, dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        Index.open(tmp_path / "index", CARD)


def test_a_question_from_a_shell_is_answered_with_titles_and_texts(
    retriever_directory, retriever, collection_directory, tmp_path, capsys
):
    corpus = Collection.open(collection_directory)
    write_index(retriever, corpus, tmp_path / "index", IndexSettings(precision="fp32"))
    common = ["--index", str(tmp_path / "index"), "--retriever", str(retriever_directory), "--depth", "3"]
    capsys.readouterr()
    assert search.main([*common, "which river is old"]) == 0
    bare = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in bare] == ["1", "2", "3"]
    assert search.main([*common, "--collection", str(collection_directory), "which river is old"]) == 0
    shown = capsys.readouterr().out
    first = corpus.lookup()[bare[0].split()[2]]
    assert first.text in " ".join(shown.split())
    assert shown.splitlines()[0].endswith(first.title or first.id)


def test_a_question_with_the_wrong_retriever_ends_with_one_line(
    retriever_directory, retriever, collection_directory, tmp_path, capsys
):
    write_vectors(tmp_path / "index", unit(9), names(9))
    arguments = ["--index", str(tmp_path / "index"), "--retriever", str(retriever_directory), "a question"]
    assert search.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
