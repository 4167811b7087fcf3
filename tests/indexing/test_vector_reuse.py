"""Encoding a changed corpus: what did not change is taken from the earlier index, the rest is encoded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from llm_retriever import files
from llm_retriever.data.collection import Collection, Passage
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.files.seal import SEAL
from llm_retriever.indexing import build
from llm_retriever.indexing import passages as passages_module
from llm_retriever.indexing.build import build_index, write_index
from llm_retriever.indexing.corpus import encoding_key
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.passages import digests
from llm_retriever.indexing.shards import Manifest, PassagesFile
from llm_retriever.indexing.vector_reuse import Earlier
from llm_retriever.models.card import RetrieverCard
from llm_retriever.settings import IndexSettings
from tests.conftest import passages

IN_SHARDS = IndexSettings(shard_passages=16, precision="fp32")


@pytest.fixture
def earlier(retriever, collection_directory, tmp_path) -> Earlier:
    write_index(retriever, Collection.open(collection_directory), tmp_path / "before", IN_SHARDS)
    return Earlier(tmp_path / "before")


@pytest.fixture
def changed(collection_of) -> Collection:
    """The passages in reverse under new ids, but for two: one has another text, one has its title in the text."""
    rows = [{**row, "_id": f"new-{row['_id']}"} for row in reversed(passages(60))]
    rows[5] = {**rows[5], "text": "Something else altogether."}
    title = next(row for row in rows if row["title"])
    title.update(title="", text=title["title"] + title["text"])
    return collection_of(rows)


@pytest.fixture
def encoded(retriever, monkeypatch) -> list[list[int]]:
    """Every passage that goes through the model from now on, as its tokens."""
    rows_seen, encode_rows = [], retriever.encode_rows

    def seen(side, rows, *rest):
        rows_seen.extend(rows)
        return encode_rows(side, rows, *rest)

    monkeypatch.setattr(retriever, "encode_rows", seen)
    return rows_seen


def forget_passages(index: Path) -> None:
    """Makes an index look like one of a version before they were listed."""
    manifest = files.read_json(index / "manifest.json")
    del manifest["passages"], manifest["reused"]
    files.write_json(index / "manifest.json", manifest)
    (index / "passages.npy").unlink()


def matrix(index) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(index.glob("vectors-*.npy"))])


def test_only_changed_passages_are_encoded(retriever, earlier, changed, tmp_path, encoded, capsys):
    write_index(retriever, changed, tmp_path / "whole", IN_SHARDS)
    encoded.clear()
    manifest = write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)
    assert len(encoded) == 2
    assert manifest["reused"] == 58
    assert "vectors taken over: 58 of 60\n" in capsys.readouterr().err
    assert sum(shard["tokens"] for shard in manifest["shards"]) == sum(map(len, encoded))
    np.testing.assert_allclose(matrix(tmp_path / "index"), matrix(tmp_path / "whole"), atol=1e-5)
    ids = [line for path in sorted((tmp_path / "index").glob("ids-*")) for line in path.read_text().splitlines()]
    assert ids == [passage.id for passage in changed.passages()]


def test_vectors_that_are_taken_over_keep_their_bits_and_so_do_copies(retriever, earlier, collection_of, tmp_path):
    rows = passages(60)
    copies = [{**row, "_id": f"copy-of-{row['_id']}"} for row in rows[20:24]]
    corpus = collection_of([*copies, *rows[:3], *rows[4:]], deduplicate=False)
    manifest = write_index(retriever, corpus, tmp_path / "index", IN_SHARDS, earlier=earlier)
    before, now = matrix(earlier.index), matrix(tmp_path / "index")
    assert manifest["reused"] == len(now) == 63
    assert now.tobytes() == before[[*range(20, 24), *range(3), *range(4, 60)]].tobytes()


def test_an_index_lists_its_passages_in_their_order_whatever_its_shards(
    retriever, collection_directory, tmp_path, monkeypatch
):
    corpus = Collection.open(collection_directory)
    for name, size in (("large", 60), ("small", 7)):
        monkeypatch.setattr(passages_module, "PASSAGES_AT_ONCE", size + 1)
        write_index(retriever, corpus, tmp_path / name, dataclasses.replace(IN_SHARDS, shard_passages=size))
    listed = np.load(tmp_path / "small" / "passages.npy", allow_pickle=False)
    assert (listed.dtype, listed.shape) == (np.uint64, (60, 2))
    np.testing.assert_array_equal(listed, digests(corpus.passages()))
    assert len(np.unique(listed[:, 0])) == 60
    (first, second) = (tmp_path / name / "passages.npy" for name in ("large", "small"))
    assert first.read_bytes() == second.read_bytes()
    assert Manifest.load(tmp_path / "small").passages == PassagesFile("passages.npy", files.sha256_of_file(second))


def test_title_and_text_are_told_apart_and_the_id_does_not_count():
    same = [Passage("a", "Bread", " is old"), Passage("b", "Bread", " is old")]
    others = [Passage("a", "", "Bread is old"), Passage("a", "Bread is", " old"), Passage("a", "bread", " is old")]
    found = {digests([passage]).tobytes() for passage in others}
    assert len(found) == 3
    assert digests(same[:1]).tobytes() == digests(same[1:]).tobytes()
    assert digests(same[:1]).tobytes() not in found
    assert len(digests([Passage("a", "", "half a pair: \ud83d")])) == 1


def test_an_unchanged_corpus_is_not_encoded_at_all(retriever, earlier, collection_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(retriever, "encode_rows", None)
    settings = dataclasses.replace(IN_SHARDS, shard_passages=25)
    write_index(retriever, Collection.open(collection_directory), tmp_path / "index", settings, earlier=earlier)
    assert matrix(tmp_path / "index").tobytes() == matrix(tmp_path / "before").tobytes()


def test_shards_with_vectors_of_an_earlier_index_have_a_name_of_their_own(retriever, earlier, changed):
    assert encoding_key(retriever, changed, IN_SHARDS) != encoding_key(retriever, changed, IN_SHARDS, earlier.digest())


@pytest.mark.parametrize(
    ("settings", "field"), [({"dtype": "fp16"}, "dtype"), ({"passage_length": 99}, "passage_length")]
)
def test_an_earlier_index_of_other_settings_is_refused(settings, field, retriever, earlier, changed, tmp_path):
    with pytest.raises(InputError, match=f'field "{field}": the earlier index has another {field}'):
        write_index(retriever, changed, tmp_path / "index", dataclasses.replace(IN_SHARDS, **settings), earlier=earlier)
    assert not (tmp_path / "index").exists()


def test_an_earlier_index_of_another_retriever_is_refused(retriever, retriever_directory, earlier, changed, tmp_path):
    card = RetrieverCard.load(retriever_directory)
    other = Retriever(retriever.model, retriever.tokenizer, dataclasses.replace(card, weights="0"))
    with pytest.raises(InputError, match="the earlier index has another encoder"):
        write_index(other, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)


def test_an_index_of_an_earlier_version_is_refused_and_says_why(retriever, earlier, changed, tmp_path):
    forget_passages(earlier.index)
    with pytest.raises(InputError, match="does not say which passages it holds; build the index anew"):
        write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)
    assert [path.name for path in tmp_path.iterdir() if "index" in path.name] == []
    vectors = retriever.encode_queries(["which river is old"])
    assert len(Index.open(earlier.index, retriever).search(vectors, 5)[1][0]) == 5


@pytest.mark.parametrize("file", ["vectors-00001.npy", "passages.npy"])
def test_an_earlier_index_that_was_changed_is_refused(file, retriever, earlier, changed, tmp_path):
    with (earlier.index / file).open("r+b") as opened:
        opened.seek(300)
        opened.write(b"\xff\xff\xff")
    with pytest.raises(InputError, match=rf"{file}: .*does not have its checksum"):
        write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)


@pytest.mark.parametrize("place", ["directory", "s3"])
def test_the_shards_of_the_earlier_index_may_lie_elsewhere(
    place, retriever, collection_directory, changed, tmp_path, encoded, request
):
    uri = str(tmp_path / "shards") if place == "directory" else f"s3://{request.getfixturevalue('s3').bucket}/shards"
    apart = dataclasses.replace(IN_SHARDS, shards_uri=uri)
    write_index(retriever, Collection.open(collection_directory), tmp_path / "before", apart)
    encoded.clear()
    manifest = write_index(retriever, changed, tmp_path / "index", apart, earlier=Earlier(tmp_path / "before"))
    assert (len(encoded), manifest["reused"]) == (2, 58)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [SEAL, "manifest.json", "passages.npy"]


@pytest.mark.slow
def test_two_processes_take_over_what_one_does(retriever_directory, earlier, changed, tmp_path):
    for processes in (1, 2):
        settings = dataclasses.replace(IN_SHARDS, processes=processes)
        build_index(retriever_directory, changed.directory, tmp_path / f"by-{processes}", settings, earlier=earlier)
    one, two = (Manifest.load(tmp_path / f"by-{processes}") for processes in (1, 2))
    assert one.reused == two.reused == 58
    assert [s.tokens for s in one.shards] == [s.tokens for s in two.shards]
    np.testing.assert_allclose(matrix(tmp_path / "by-1"), matrix(tmp_path / "by-2"), atol=1e-5)


def test_a_killed_run_goes_on_with_what_was_taken_over(retriever, earlier, changed, tmp_path, encoded, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build, "_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)
    assert len(encoded) == 2
    manifest = write_index(retriever, changed, tmp_path / "index", IN_SHARDS, earlier=earlier)
    assert len(encoded) == 2
    assert manifest["reused"] == 58
    assert Index.open(tmp_path / "index", retriever, verify=True).count == 60
