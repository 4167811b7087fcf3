"""Indexes of a vector's first numbers, and of int8: what is stored, what is found, and what goes on from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm_retriever import files
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation import efficiency
from llm_retriever.evaluation.production import settings_of
from llm_retriever.indexing import streaming
from llm_retriever.indexing.build import build_index, write_index
from llm_retriever.indexing.corpus import encode_part
from llm_retriever.indexing.faiss_kinds import KINDS, plan
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest, check_index
from llm_retriever.indexing.stored import DTYPES, decoded, encoded, first_numbers, row_bytes
from llm_retriever.indexing.vector_reuse import Earlier
from llm_retriever.settings import IndexSettings, PartSettings
from tests.indexing.vectors import by_definition, clustered, names, unit, write_vectors

SMALL = IndexSettings(shard_passages=16, precision="fp32", dimension=24, dtype="int8")


def matrix(index) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(index.glob("vectors-*.npy"))])


def prefixes(vectors: np.ndarray, dimension: int) -> np.ndarray:
    kept = vectors[:, :dimension].astype(np.float64)
    return (kept / np.linalg.norm(kept, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus(collection_directory) -> Collection:
    return Collection.open(collection_directory)


@pytest.fixture(scope="module")
def small(retriever, corpus, tmp_path_factory):
    """An index of 24 of 64 numbers in int8; not to be changed."""
    directory = tmp_path_factory.mktemp("small") / "index"
    write_index(retriever, corpus, directory, SMALL)
    return directory


def test_int8_is_within_half_a_scale_of_what_was_encoded():
    vectors = unit(50) * np.logspace(-30, 30, 50, dtype=np.float32)[:, None]
    rows = encoded(vectors, "int8")
    scales = np.abs(vectors).max(axis=1) / 127
    assert rows.nbytes == 50 * row_bytes("int8", 48) == 50 * 52
    assert (np.abs(decoded(rows) - vectors) <= 0.5001 * scales[:, None]).all()
    assert (np.abs(rows[:, :-4]).max(axis=1) == 127).all()


def test_a_row_does_not_depend_on_those_beside_it():
    vectors = unit(9)
    assert encoded(vectors, "int8")[4].tobytes() == encoded(vectors[4:5], "int8").tobytes()


@pytest.mark.parametrize("number", [0, 1e-44, -3e-39])
def test_vectors_of_nothing_or_hardly_anything_stay_finite(number):
    found = decoded(encoded(np.full((1, 8), number, np.float32), "int8"))
    assert np.abs(found - np.float32(number)).max() < 1e-40


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_finite_when_it_is_decoded(number):
    vectors = unit(3)
    vectors[1, 7] = number
    for dtype in DTYPES:
        assert np.isfinite(decoded(encoded(vectors, dtype))).all(axis=1).tolist() == [True, False, True]


def test_first_numbers_have_length_1_where_whole_vectors_have():
    vectors = np.vstack([unit(5), np.eye(48, dtype=np.float32)[-1:]])
    np.testing.assert_allclose(first_numbers(vectors, 16, normalised=True)[:5], prefixes(vectors[:5], 16), atol=1e-6)
    assert not first_numbers(vectors, 16, normalised=True)[5].any()
    assert first_numbers(vectors, 16, normalised=False).tobytes() == vectors[:, :16].tobytes()
    assert first_numbers(vectors, 48, normalised=True) is vectors


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("memory", [1, 2**30])
def test_int8_is_searched_exactly(tmp_path, monkeypatch, shards, memory):
    monkeypatch.setattr(streaming, "PIECE_ROWS", 100)
    vectors, queries, ids = unit(1500), unit(20, seed=1), names(1500)
    write_vectors(tmp_path / "index", vectors, ids, shards, "int8")
    index = Index(tmp_path / "index", Manifest.load(tmp_path / "index"), memory)
    stored = decoded(encoded(vectors, "int8"))
    assert index.search(queries, 20)[1] == by_definition(queries, stored, ids, 20)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "flat"])
def test_int8_makes_any_kind(tmp_path, kind):
    vectors, queries, ids = clustered(1500, 32), clustered(10, 32, seed=8), names(1500)
    index = write_vectors(tmp_path / "index", vectors, ids, 2, "int8", settings=IndexSettings(kind=kind))
    exact = by_definition(queries, decoded(encoded(vectors, "int8")), ids, 10)
    found = index.search(queries, 10)[1]
    assert np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact, found, strict=True)]) >= 0.9


def test_an_index_holds_the_first_numbers_of_all_passages_and_says_so(retriever, corpus, small):
    wanted = prefixes(retriever.encode_passages(list(corpus.passages())), 24)
    np.testing.assert_allclose(decoded(matrix(small)), wanted, atol=0.5 / 127)
    manifest = Manifest.load(small)
    assert (manifest.dimension, manifest.encoder_dimension, manifest.dtype) == (24, 64, "int8")
    assert manifest.normalised
    assert manifest.settings["dimension"] == 24
    assert efficiency.indexing(manifest, None)["bytes_per_passage"] == 28 == matrix(small).itemsize * 28


def test_a_small_index_answers_whole_queries_with_cosines_of_their_first_numbers(retriever, corpus, small):
    queries = retriever.encode_queries(list(corpus.queries("test").values()))
    scores, ids = Index.open(small, retriever, verify=True).search(queries, 5)
    place = {passage.id: i for i, passage in enumerate(corpus.passages())}
    stored = decoded(matrix(small))
    for query, row, found in zip(prefixes(queries, 24), scores, ids, strict=True):
        cosines = stored @ query
        np.testing.assert_allclose(row, np.sort(cosines)[::-1][:5], atol=1e-5)
        np.testing.assert_allclose(row, cosines[[place[name] for name in found]], atol=1e-5)
    with pytest.raises(ValueError, match="for an index of dimension 64"):
        Index.open(small, retriever).search(queries[:, :24], 5)


def test_parts_make_the_same_small_index(retriever_directory, collection_directory, small, tmp_path):
    told = {
        name: value for name, value in dataclasses.asdict(SMALL).items() if name in PartSettings.__dataclass_fields__
    }
    told["shards_uri"] = str(tmp_path / "shards")
    for part in (0, 1):
        settings = PartSettings(**told, part=part, parts=2)
        encode_part(retriever_directory, collection_directory, tmp_path / str(part), settings)
    settings = dataclasses.replace(SMALL, shards_uri=told["shards_uri"])
    manifest = build_index(retriever_directory, collection_directory, tmp_path / "index", settings)
    assert [s["sha256"] for s in manifest["shards"]] == [s.sha256 for s in Manifest.load(small).shards]


def test_vectors_of_a_small_index_are_taken_over_with_their_bits(retriever, corpus, small, tmp_path):
    again = settings_of(Manifest.load(small))
    assert (again.dimension, again.dtype) == (24, "int8")
    settings = dataclasses.replace(again, shard_passages=7)
    manifest = write_index(retriever, corpus, tmp_path / "index", settings, earlier=Earlier(small))
    assert manifest["reused"] == corpus.passage_count
    assert matrix(tmp_path / "index").tobytes() == matrix(small).tobytes()


@pytest.mark.parametrize(("field", "value"), [("dimension", 0), ("dimension", 23), ("dtype", "fp32")])
def test_vectors_of_another_size_are_not_taken_over(retriever, corpus, small, tmp_path, field, value):
    settings = dataclasses.replace(SMALL, **{field: value})
    with pytest.raises(InputError, match=f"the earlier index has another {field}"):
        write_index(retriever, corpus, tmp_path / "index", settings, earlier=Earlier(small))


def test_more_numbers_than_the_encoder_has_are_refused(retriever, corpus, tmp_path):
    with pytest.raises(InputError, match=r'field "dimension": vectors of .* have 64 numbers, not 65; give fewer'):
        write_index(retriever, corpus, tmp_path / "index", dataclasses.replace(SMALL, dimension=65))
    assert not list(tmp_path.iterdir())


def test_a_scale_that_is_not_finite_is_found(tmp_path):
    vectors = encoded(unit(9), "int8")
    index = write_vectors(tmp_path / "index", decoded(vectors), names(9), dtype="int8")
    shard = index.manifest.shards[0]
    vectors[4, -4:] = np.frombuffer(np.float32(np.inf).tobytes(), np.int8)
    np.save(tmp_path / "index" / shard.file, vectors)
    forged = dataclasses.replace(shard, sha256=files.sha256_of_file(tmp_path / "index" / shard.file))
    manifest = dataclasses.replace(index.manifest, shards=(forged,))
    with pytest.raises(InputError, match="the vector in row 4 is not finite"):
        check_index(manifest, tmp_path / "index", tmp_path / "index")


def test_the_plan_counts_the_bytes_of_the_stored_type():
    sizes = {dtype: plan(1000, 128, IndexSettings(dtype=dtype)).shard_bytes for dtype in DTYPES}
    assert sizes == {"fp32": 512_000, "fp16": 256_000, "int8": 132_000}
