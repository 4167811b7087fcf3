from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_retriever.data.collection import Collection
from llm_retriever.encoders.interface import Report, Side, Vectors
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.indexing import corpus
from llm_retriever.mining import dense
from llm_retriever.mining.dense import dense_index
from llm_retriever.settings import IndexSettings

SETTINGS = IndexSettings(shard_passages=20, processes=1)


class Counting(Retriever):
    """Counts the passages that go through the model, and stops before it would be more than `most`."""

    passages = 0
    most = 1000

    def encode_rows(
        self, side: Side, rows: Sequence[Sequence[int]], batch_tokens: int, report: Report = lambda batch, slots: None
    ) -> Vectors:
        if side == "passage":
            if self.passages + len(rows) > self.most:
                raise KeyboardInterrupt
            self.passages += len(rows)
        return super().encode_rows(side, rows, batch_tokens, report)


@pytest.fixture
def retriever(retriever_directory: Path) -> Counting:
    loaded = Counting.load(retriever_directory, precision="fp32")
    assert isinstance(loaded, Counting)
    return loaded


def test_every_query_is_searched_exactly_and_in_order(
    retriever: Counting, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dense, "QUERIES_AT_ONCE", 7)
    queries = collection.queries("train")
    with dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS) as index:
        found = list(index.search(queries, 12))
    assert [query for query, _ in found] == list(queries)
    passages = list(collection.passages())
    scores = retriever.encode_queries(list(queries.values())) @ retriever.encode_passages(passages).T
    for row, (_, ranking) in zip(scores, found, strict=True):
        assert len(ranking) == 12
        assert [score for _, score in ranking] == pytest.approx(np.sort(row)[::-1][:12], abs=1e-5)
        own = {passage.id: score for passage, score in zip(passages, row, strict=True)}
        assert [own[passage] for passage, _ in ranking] == pytest.approx([s for _, s in ranking], abs=1e-5)


def test_a_killed_encode_resumes_at_its_first_missing_shard(
    retriever: Counting, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "WINDOW_PASSAGES", 10)
    retriever.most = 65
    with pytest.raises(KeyboardInterrupt), dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS):
        pytest.fail("the corpus is encoded")
    assert retriever.passages == 60
    retriever.most = 1000
    queries = collection.queries("dev")
    with dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS) as index:
        resumed = list(index.search(queries, 5))
    # What was on its way to the disk is encoded again, whole shards are not.
    assert retriever.passages < 60 + collection.passage_count
    with dense_index(lambda: retriever, collection, tmp_path / "other", SETTINGS) as index:
        assert list(index.search(queries, 5)) == resumed


def test_vectors_stay_when_what_follows_fails_and_go_when_it_is_done(
    retriever: Counting, collection: Collection, tmp_path: Path
) -> None:
    with pytest.raises(KeyError), dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS):
        raise KeyError
    with dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS):
        assert retriever.passages == collection.passage_count
    assert not (tmp_path / "work").exists()


def test_vectors_of_other_settings_are_not_taken_up(
    retriever: Counting, collection: Collection, tmp_path: Path
) -> None:
    with pytest.raises(KeyError), dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS):
        raise KeyError
    with dense_index(
        lambda: retriever, collection, tmp_path / "work", IndexSettings(dtype="fp16", processes=1)
    ) as index:
        assert retriever.passages == 2 * collection.passage_count
        assert index.parameters(5)["dtype"] == "fp16"
        assert len(list((tmp_path / "work").iterdir())) == 1


def test_a_large_corpus_without_a_gpu_is_warned_of(
    retriever: Counting,
    collection: Collection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for most, lines in ((collection.passage_count, 0), (collection.passage_count - 1, 1)):
        monkeypatch.setattr(dense, "PROCESSOR_PASSAGES", most)
        with dense_index(lambda: retriever, collection, tmp_path / "work", SETTINGS):
            assert capsys.readouterr().err.count("dense mining: no GPU is visible") == lines


def test_vectors_at_a_place_of_their_own_are_left_there(
    retriever: Counting, collection: Collection, tmp_path: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, shards_uri=str(tmp_path / "shards"))
    queries = collection.queries("dev")
    for run in ("first", "second"):
        with dense_index(lambda: retriever, collection, tmp_path / run, settings) as index:
            found = list(index.search(queries, 5))
    assert len(found) == len(queries)
    assert retriever.passages == collection.passage_count
    assert list((tmp_path / "shards").rglob("*.npy"))
