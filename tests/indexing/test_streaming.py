"""Vectors that do not fit into memory: read in blocks over the borders of shards, and searched to the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from llm_retriever.errors import InputError
from llm_retriever.indexing import near_ties
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.stored import DTYPES, decoded, encoded
from llm_retriever.indexing.streaming import ALIGNMENT, ShardedVectors
from tests.indexing.vectors import CARD, by_definition, names, unit, write_vectors

SMALL = 1
"""Bytes: blocks of the smallest size."""


def streamed(directory: Path, memory_bytes: int = SMALL) -> Index:
    return Index.open(directory, CARD, memory_bytes=memory_bytes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_blocks_hold_every_vector_once_and_in_order(tmp_path, shards, dtype):
    vectors = unit(2500)
    index = write_vectors(tmp_path / "index", vectors, names(2500), shards, dtype)
    stored = decoded(encoded(vectors, dtype))
    for memory, starts in ((SMALL, [0, 1024, 2048]), (2**30, [0])):
        sharded = ShardedVectors(tmp_path / "index", index.manifest, memory)
        blocks = [(start, block.copy()) for start, block in sharded.blocks()]
        assert [start for start, _ in blocks] == starts
        np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), stored)
        some = np.array([2499, 0, 500, 1249, 1250, 0])
        np.testing.assert_array_equal(sharded.rows(some), stored[some])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("depth", [1, 10, 1500])
def test_streaming_gives_the_bits_that_searching_in_memory_gives(tmp_path, shards, dtype, depth):
    queries = unit(40, seed=1)
    index = write_vectors(tmp_path / "index", unit(4 * ALIGNMENT + 77), names(4 * ALIGNMENT + 77), shards, dtype)
    scores, ids = index.search(queries, depth)
    again, same = streamed(tmp_path / "index").search(queries, depth)
    assert again.tobytes() == scores.tobytes()
    assert same == ids


def test_near_ties_over_the_borders_of_blocks_are_ranked_by_definition(tmp_path):
    vectors = np.repeat(unit(20), 150, axis=0)[np.random.default_rng(4).permutation(3000)]
    queries, ids = unit(20), names(3000)
    write_vectors(tmp_path / "index", vectors, ids, shards=3)
    assert streamed(tmp_path / "index").search(queries, 200)[1] == by_definition(queries, vectors, ids, 200)


def test_the_memory_of_streaming_is_bounded(tmp_path):
    """64 MiB of vectors within 8 MiB: three blocks of 2 MiB, and a quarter for what is converted."""
    vectors = unit(65_536, 256)
    write_vectors(tmp_path / "index", vectors, names(len(vectors)), shards=2)
    index = streamed(tmp_path / "index", 8 * 2**20)
    sharded = ShardedVectors(tmp_path / "index", index.manifest, 8 * 2**20)
    assert sharded.block_rows == 2048
    process, most = psutil.Process(), 0
    before = process.memory_info().rss
    for _, block in sharded.blocks():
        assert block.nbytes <= 2 * 2**20
        most = max(most, process.memory_info().rss - before)
    assert most < 16 * 2**20


def test_a_shard_that_is_cut_off_while_it_is_searched_is_reported(tmp_path):
    write_vectors(tmp_path / "index", unit(3000), names(3000), shards=2)
    index = streamed(tmp_path / "index")
    second = tmp_path / "index" / "vectors-00001.npy"
    with second.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"vectors-00001\.npy: ends too early"):
        index.search(unit(2, seed=1), 5)


def almost_one_point(rows: int, dimension: int = 48) -> np.ndarray:
    """What a hardly trained model makes of a corpus: vectors that differ in the last bits."""
    vectors = unit(1, dimension) + 1e-7 * np.random.default_rng(6).standard_normal((rows, dimension))
    return vectors.astype(np.float32)


@pytest.mark.parametrize("memory", [SMALL, 2**30])
@pytest.mark.parametrize("depth", [1, 60])
def test_almost_identical_vectors_are_ranked_by_definition(tmp_path, monkeypatch, memory, depth):
    vectors, queries, ids = almost_one_point(2100), unit(12, seed=1), names(2100)
    write_vectors(tmp_path / "index", vectors, ids, shards=2)
    monkeypatch.setattr(near_ties, "NUMBERS_OF_PIECE", 5000)
    assert streamed(tmp_path / "index", memory).search(queries, depth)[1] == by_definition(queries, vectors, ids, depth)


def test_almost_identical_vectors_are_not_fetched_one_by_one(tmp_path, monkeypatch):
    vectors, queries, ids = almost_one_point(3000), unit(50, seed=1), names(3000)
    index = write_vectors(tmp_path / "index", vectors, ids)
    fetched = []
    rows = ShardedVectors.rows
    monkeypatch.setattr(ShardedVectors, "rows", lambda self, at: fetched.append(len(at)) or rows(self, at))
    assert index.search(queries, 10)[1] == by_definition(queries, vectors, ids, 10)
    assert sum(fetched) < 50 * (10 + 30)
