"""Searching an index: exact, in trec_eval's order, and the same however the vectors are cut into shards."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import faiss
import numpy as np
import pytest

from llm_retriever.errors import InputError
from llm_retriever.indexing import near_ties, streaming
from llm_retriever.indexing.index import Index
from tests.indexing.vectors import CARD, by_definition, names, unit, write_vectors


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
    monkeypatch.setattr("llm_retriever.indexing.index.QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(near_ties, "NUMBERS_OF_PIECE", 500)
    assert index.search(queries, 25)[1] == together


def with_outliers() -> tuple[np.ndarray, np.ndarray]:
    """As large models make them: a few dimensions hold most of the length, and a few passages are much longer."""
    vectors, queries = unit(1500), unit(400, seed=1)
    for both in (vectors, queries):
        both[:, [3, 40]] += np.float32([8, -7])
    vectors[::100] *= 50
    return vectors, queries


@pytest.mark.parametrize("make", [hard_to_rank, with_outliers])
def test_many_queries_at_once_are_ranked_by_definition(tmp_path, make):
    vectors, queries = make()
    queries = np.concatenate([queries, unit(400 - len(queries), seed=8)])
    ids = names(len(vectors))
    index = write_vectors(tmp_path / "index", vectors, ids, shards=2)
    assert index.search(queries, 80)[1] == by_definition(queries, vectors, ids, 80)


def test_ids_are_decoded_by_row_by_slice_and_all_at_once(tmp_path):
    index = write_vectors(tmp_path / "index", unit(50), names(50), shards=3)
    ids = index.search(unit(6, seed=1), 4)[1]
    rows = list(ids)
    assert [ids[i] for i in range(6)] == rows
    assert ids[-1] == rows[-1]
    assert ids[2:5] == rows[2:5]
    assert len(ids) == 6
    assert [[index.passage_id(p) for p in row] for row in ids.positions.tolist()] == rows


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
    monkeypatch.setattr(streaming, "PIECE_ROWS", 100)
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
        ({"dtype": "int4"}, "unknown type 'int4'"),
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
