from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.mining.bm25 import BM25, Ranking
from tests.mining.conftest import LONG_QUERY

# pyserini as its documentation shows it: its own indexer and its own batch_search.
PYSERINI = """
import json, sys, tempfile
from llm_retriever.mining import lucene
lucene.start_java(2)
from pyserini.index.lucene import LuceneIndexer
from pyserini.search.lucene import LuceneSearcher
asked = json.load(sys.stdin)
with tempfile.TemporaryDirectory() as directory:
    indexer = LuceneIndexer(directory)
    indexer.add_batch_dict(asked["passages"])
    indexer.close()
    searcher = LuceneSearcher(directory)
    searcher.set_bm25(0.9, 0.4)
    found = searcher.batch_search(asked["texts"], asked["names"], k=asked["depth"], threads=2)
    answer = {name: [(hit.docid, hit.score) for hit in hits] for name, hits in found.items()}
print("ANSWER" + json.dumps(answer))
"""


@pytest.fixture(scope="module")
def bm25(collection: Collection) -> Iterator[BM25]:
    """One Lucene for the tests that only search."""
    with BM25(collection, k1=0.9, b=0.4, threads=2) as searching:
        yield searching


def ask(bm25: BM25, text: str, depth: int = 10) -> Ranking:
    return dict(bm25.search({"q": text}, depth))["q"]


def ids(ranking: Ranking) -> list[str]:
    return [passage for passage, _ in ranking]


def test_it_finds_what_pyserini_finds(bm25: BM25, collection: Collection) -> None:
    queries = collection.queries("test")
    asked = {
        "passages": [{"id": p.id, "contents": f"{p.title} {p.text}".strip()} for p in collection.passages()],
        "names": list(queries),
        "texts": list(queries.values()),
        "depth": 20,
    }
    done = subprocess.run(
        [sys.executable, "-c", PYSERINI], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout.split("ANSWER")[1])
    ours = dict(bm25.search(queries, 20))
    assert list(ours) == list(queries)
    for name, ranking in ours.items():
        assert ids(ranking) == [passage for passage, _ in theirs[name]]
        # Anserini rounds to four digits and lowers each of several equal scores by another millionth.
        assert [score for _, score in ranking] == pytest.approx([score for _, score in theirs[name]], abs=1e-4)


def test_all_passages_are_indexed(bm25: BM25, collection: Collection) -> None:
    assert bm25.wait() == collection.passage_count


def test_equal_scores_stand_in_the_order_of_ids(bm25: BM25) -> None:
    ranking = ask(bm25, "zebra crossing")
    assert ids(ranking) == ["tie1", "tie2", "tie3"]
    assert len({score for _, score in ranking}) == 1
    assert ids(ask(bm25, "zebra crossing", depth=2)) == ["tie1", "tie2"]


def test_the_number_of_threads_changes_nothing(bm25: BM25, collection: Collection) -> None:
    queries = collection.queries("train")
    with BM25(collection, k1=0.9, b=0.4, threads=3) as more:
        assert list(more.search(queries, 30)) == list(bm25.search(queries, 30))


def test_titles_are_searched(bm25: BM25) -> None:
    assert ids(ask(bm25, "okapi")) == ["titled"]


def test_words_are_stemmed(bm25: BM25) -> None:
    assert ids(ask(bm25, "an antelope runs")) == ["runs"]


def test_ids_and_texts_may_hold_any_character(bm25: BM25) -> None:
    assert ids(ask(bm25, "ракета")) == ["ключ/🚀"]
    assert ids(ask(bm25, "🚀")) == ["ключ/🚀"]
    assert ask(bm25, "\ud83d lone") == []


def test_stop_words_alone_find_nothing(bm25: BM25) -> None:
    assert ask(bm25, "the of") == []


def test_query_syntax_is_only_text(bm25: BM25) -> None:
    assert ids(ask(bm25, '+okapi AND (id:"[* TO ]~ OR \\')) == ["titled"]


def test_a_query_of_thousands_of_words_is_searched(bm25: BM25) -> None:
    assert ids(ask(bm25, f"{LONG_QUERY} okapi")) == ["titled"]


def test_parameters_reach_the_similarity(bm25: BM25, collection: Collection) -> None:
    with BM25(collection, k1=0.0, b=0.0, threads=1) as binary:
        # Without saturation and length all that counts is whether a word is there.
        assert len({score for _, score in ask(binary, "river", depth=60)}) == 1
    assert len({score for _, score in ask(bm25, "river", depth=60)}) > 1


def test_no_queries_no_answers(bm25: BM25) -> None:
    assert list(bm25.search({}, 10)) == []


def test_nothing_is_left_behind(collection: Collection) -> None:
    failing = BM25(collection, k1=0.9, b=0.4)
    directories: list[Path] = []

    def fail() -> None:
        with failing:
            directories.append(Path(failing._directory.name))
            assert directories[0].is_dir()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not directories[0].exists()
    assert failing._process.poll() is not None


def test_a_lucene_that_dies_is_told(collection: Collection) -> None:
    with BM25(collection, k1=0.9, b=0.4) as dying:
        dying._process.kill()
        with pytest.raises(RuntimeError, match="ended with code -9"):
            ask(dying, "river")


def test_bad_input_found_by_the_other_process_is_bad_input_here(collection: Collection, tmp_path: Path) -> None:
    copy = Collection.open(shutil.copytree(collection.directory, tmp_path / "copy"))
    (tmp_path / "copy" / "collection.json").unlink()
    with BM25(copy, k1=0.9, b=0.4) as refusing, pytest.raises(InputError, match="no such file") as caught:
        refusing.wait()
    assert str(caught.value.file).endswith("collection.json")
    assert caught.value.mend
