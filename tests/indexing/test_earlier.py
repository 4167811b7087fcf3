"""Encoding a changed corpus: what did not change is taken from the earlier index, the rest is encoded."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.indexing import parts
from llm_retriever.indexing.build import write_index
from llm_retriever.indexing.earlier import Earlier
from llm_retriever.settings import IndexSettings
from tests.conftest import passages

IN_SHARDS = IndexSettings(shard_passages=16, precision="fp32")


@pytest.fixture
def earlier(retriever, collection_directory, tmp_path) -> Earlier:
    write_index(retriever, Collection.open(collection_directory), tmp_path / "before", IN_SHARDS)
    return Earlier(tmp_path / "before", collection_directory)


@pytest.fixture
def changed(collection_of) -> Collection:
    """The passages in reverse under new ids, but for two: one has another text, one has its title in the text."""
    rows = [{**row, "_id": f"new-{row['_id']}"} for row in reversed(passages(60))]
    rows[5] = {**rows[5], "text": "Something else altogether."}
    title = next(row for row in rows if row["title"])
    title.update(title="", text=title["title"] + title["text"])
    return collection_of(rows)


def matrix(index) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(index.glob("vectors-*.npy"))])


def test_only_changed_passages_are_encoded(retriever, earlier, changed, tmp_path, monkeypatch):
    write_index(retriever, changed, tmp_path / "whole", IN_SHARDS)
    encoded, encode_rows = [], retriever.encode_rows
    monkeypatch.setattr(
        retriever, "encode_rows", lambda side, rows, *a: (encoded.extend(rows), encode_rows(side, rows, *a))[1]
    )
    manifest = write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)
    assert len(encoded) == 2
    assert sum(shard["tokens"] for shard in manifest["shards"]) == sum(map(len, encoded))
    np.testing.assert_allclose(matrix(tmp_path / "index"), matrix(tmp_path / "whole"), atol=1e-5)
    ids = [line for path in sorted((tmp_path / "index").glob("ids-*")) for line in path.read_text().splitlines()]
    assert ids == [passage.id for passage in changed.passages()]


def test_an_unchanged_corpus_is_not_encoded_at_all(retriever, earlier, collection_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(retriever, "encode_rows", None)
    settings = dataclasses.replace(IN_SHARDS, shard_passages=25)
    write_index(retriever, Collection.open(collection_directory), tmp_path / "index", settings, earlier=earlier)
    assert matrix(tmp_path / "index").tobytes() == matrix(tmp_path / "before").tobytes()


def test_shards_with_vectors_of_an_earlier_index_have_a_name_of_their_own(retriever, earlier, changed):
    assert parts.encoding_key(retriever, changed, IN_SHARDS) != parts.encoding_key(
        retriever, changed, IN_SHARDS, earlier.digest()
    )


@pytest.mark.parametrize(
    ("settings", "field"), [({"dtype": "fp16"}, "dtype"), ({"passage_length": 99}, "passage_length")]
)
def test_an_earlier_index_of_other_settings_is_refused(settings, field, retriever, earlier, changed, tmp_path):
    with pytest.raises(InputError, match=f'field "{field}": the earlier index has another {field}'):
        write_index(retriever, changed, tmp_path / "index", dataclasses.replace(IN_SHARDS, **settings), earlier=earlier)
    assert not (tmp_path / "index").exists()


def test_an_earlier_index_with_another_collection_is_refused(retriever, earlier, changed, tmp_path):
    wrong = Earlier(earlier.index, changed.directory)
    with pytest.raises(InputError, match="the earlier index has another collection"):
        write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=wrong)
