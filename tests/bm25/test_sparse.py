from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_retriever.bm25.similarities import Similarity, bm25, parse_baselines
from llm_retriever.bm25.sparse import Ranking, SparseIndex
from llm_retriever.data.collection import Collection, fingerprint_of
from llm_retriever.data.preparation import prepare
from llm_retriever.data.sources.rows import LONGEST_ID
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings
from tests.mining.conftest import LONG_QUERY

# pyserini as its documentation shows it: its own indexer and its own batch_search.
PYSERINI = """
import json, sys, tempfile
from llm_retriever.bm25 import lucene
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


DEFAULT = bm25(0.9, 0.4)


@pytest.fixture(scope="module")
def index(collection: Collection) -> Iterator[SparseIndex]:
    """One Lucene for the tests that only search."""
    with SparseIndex(collection, threads=2) as searching:
        yield searching


def ask(index: SparseIndex, text: str, depth: int = 10, similarity: Similarity = DEFAULT) -> Ranking:
    return dict(index.search({"q": text}, depth, similarity))["q"]


def ids(ranking: Ranking) -> list[str]:
    return [passage for passage, _ in ranking]


def test_it_finds_what_pyserini_finds(index: SparseIndex, collection: Collection) -> None:
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
    ours = dict(index.search(queries, 20, DEFAULT))
    assert list(ours) == list(queries)
    for name, ranking in ours.items():
        assert ids(ranking) == [passage for passage, _ in theirs[name]]
        # Anserini rounds to four digits and lowers each of several equal scores by another millionth.
        assert [score for _, score in ranking] == pytest.approx([score for _, score in theirs[name]], abs=1e-4)


def test_all_passages_are_indexed(index: SparseIndex, collection: Collection) -> None:
    assert index.wait() == collection.passage_count


def test_equal_scores_stand_in_the_order_of_ids(index: SparseIndex) -> None:
    ranking = ask(index, "zebra crossing")
    assert ids(ranking) == ["tie1", "tie2", "tie3"]
    assert len({score for _, score in ranking}) == 1
    assert ids(ask(index, "zebra crossing", depth=2)) == ["tie1", "tie2"]


def test_the_number_of_threads_changes_nothing(index: SparseIndex, collection: Collection) -> None:
    queries = collection.queries("train")
    with SparseIndex(collection, threads=3) as more:
        assert list(more.search(queries, 30, DEFAULT)) == list(index.search(queries, 30, DEFAULT))


def test_titles_are_searched(index: SparseIndex) -> None:
    assert ids(ask(index, "okapi")) == ["titled"]


def test_words_are_stemmed(index: SparseIndex) -> None:
    assert ids(ask(index, "an antelope runs")) == ["runs"]


def test_ids_and_texts_may_hold_any_character(index: SparseIndex) -> None:
    assert ids(ask(index, "ракета")) == ["ключ/🚀"]
    assert ids(ask(index, "🚀")) == ["ключ/🚀"]
    assert ask(index, "\ud83d lone") == []


def test_stop_words_alone_find_nothing(index: SparseIndex) -> None:
    assert ask(index, "the of") == []


def test_query_syntax_is_only_text(index: SparseIndex) -> None:
    assert ids(ask(index, '+okapi AND (id:"[* TO ]~ OR \\')) == ["titled"]


def test_a_query_of_thousands_of_words_is_searched(index: SparseIndex) -> None:
    assert ids(ask(index, f"{LONG_QUERY} okapi")) == ["titled"]


def test_parameters_reach_the_similarity(index: SparseIndex) -> None:
    # Without saturation and length all that counts is whether a word is there.
    assert len({score for _, score in ask(index, "river", 60, bm25(0.0, 0.0))}) == 1
    assert len({score for _, score in ask(index, "river", 60)}) > 1


def test_no_queries_no_answers(index: SparseIndex) -> None:
    assert list(index.search({}, 10, DEFAULT)) == []


def test_nothing_is_left_behind(collection: Collection) -> None:
    failing = SparseIndex(collection)
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
    with SparseIndex(collection) as dying:
        dying._process.kill()
        with pytest.raises(RuntimeError, match="ended with code -9"):
            ask(dying, "river")


def test_bad_input_found_by_the_other_process_is_bad_input_here(collection: Collection, tmp_path: Path) -> None:
    copy = Collection.open(shutil.copytree(collection.directory, tmp_path / "copy"))
    (tmp_path / "copy" / "collection.json").unlink()
    with SparseIndex(copy) as refusing, pytest.raises(InputError, match="no such file") as caught:
        refusing.wait()
    assert str(caught.value.file).endswith("collection.json")
    assert caught.value.hint


def with_long_ids(directory: Path, sizes: list[int]) -> Collection:
    """A collection with ids of so many bytes of UTF-8, as one that was prepared before ids had a limit."""
    source = directory / "source"
    (source / "qrels").mkdir(parents=True)
    rows = [{"_id": str(size), "title": "", "text": f"quartz number {size}"} for size in [1, *sizes]]
    (source / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source / "queries.jsonl").write_text('{"_id": "q", "text": "quartz"}\n')
    (source / "qrels" / "test.tsv").write_text("q\t1\t1\n")
    prepare(CorpusSettings(uri=str(source)), directory / "collection")
    corpus = directory / "collection" / "corpus.jsonl"
    text = corpus.read_text()
    for size in sizes:
        text = text.replace(f'"_id": "{size}"', f'"_id": "{size // 2 * "é"}{size % 2 * "x"}"')
    corpus.write_text(text)
    manifest = json.loads((directory / "collection" / "collection.json").read_text())
    manifest["files"]["corpus.jsonl"] = corpus.stat().st_size
    manifest["fingerprint"] = fingerprint_of(directory / "collection", manifest["files"])
    (directory / "collection" / "collection.json").write_text(json.dumps(manifest))
    return Collection.open(directory / "collection")


def test_the_longest_id_that_preparation_lets_through_is_indexed_and_found(tmp_path: Path) -> None:
    made = with_long_ids(tmp_path, [LONGEST_ID - 1, LONGEST_ID])
    with SparseIndex(made, threads=1) as index:
        assert index.wait() == made.passage_count == 3
        assert {len(passage.encode()) for passage in ids(ask(index, "quartz"))} == {1, LONGEST_ID - 1, LONGEST_ID}


@pytest.mark.parametrize("sizes", [[LONGEST_ID + 1], [40, LONGEST_ID + 2, 100_000]])
def test_an_index_that_lacks_passages_is_refused(tmp_path: Path, sizes: list[int]) -> None:
    made = with_long_ids(tmp_path, sizes)
    lacking = sum(size > LONGEST_ID for size in sizes)
    with SparseIndex(made, threads=1) as index, pytest.raises(InputError) as caught:
        index.wait()
    told = f"Lucene has indexed {made.passage_count - lacking} of {made.passage_count} passages"
    assert caught.value.problem == told
    assert str(caught.value.file).endswith("corpus.jsonl")
    assert caught.value.hint


WORDS = {
    "a": "zinc zinc zinc iron",
    "b": "zinc iron iron gold lead lead",
    "c": "gold gold lead",
    "d": "iron zinc gold lead salt",
}


class Words:
    """Counts of words that no analyser changes, as the formulas of query likelihood take them."""

    def __init__(self) -> None:
        self.counts = {name: Counter(text.split()) for name, text in WORDS.items()}
        self.total = sum((count for count in self.counts.values()), Counter())
        self.length = self.total.total()

    def scores(self, query: str, word_score: Callable[[int, int, float], float]) -> dict[str, float]:
        """Sum over the query's words in a passage of `word_score(tf, |d|, p(w|C))`."""
        found = {}
        for name, counts in self.counts.items():
            values = [
                word_score(counts[w], counts.total(), (self.total[w] + 1) / (self.length + 1))
                for w in query.split()
                if counts[w]
            ]
            if values:
                found[name] = sum(values)
        return found


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparseIndex]:
    source = tmp_path_factory.mktemp("words")
    (source / "in" / "qrels").mkdir(parents=True)
    rows = [{"_id": name, "title": "", "text": text} for name, text in WORDS.items()]
    (source / "in" / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source / "in" / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "zinc"}) + "\n")
    (source / "in" / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\ta\t1\n")
    prepare(CorpusSettings(uri=str(source / "in"), heldout_queries=0), source / "out")
    with SparseIndex(Collection.open(source / "out"), threads=1) as searching:
        yield searching


@pytest.mark.parametrize("mu", [2.0, 10.0, 1000.0])
def test_dirichlet_scores_are_those_of_the_formula(words: SparseIndex, mu: float) -> None:
    def dirichlet(tf: int, length: int, p: float) -> float:
        return max(0.0, math.log(1 + tf / (mu * p)) + math.log(mu / (length + mu)))

    (system,) = parse_baselines(f"qld:{mu}")
    expected = Words().scores("zinc lead salt", dirichlet)
    found = dict(ask(words, "zinc lead salt", similarity=system))
    assert {name: found.get(name, 0.0) for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_jelinek_mercer_scores_are_those_of_the_formula(words: SparseIndex, weight: float) -> None:
    def jelinek_mercer(tf: int, length: int, p: float) -> float:
        return math.log(1 + (1 - weight) * tf / (weight * length * p))

    (system,) = parse_baselines(f"qljm:{weight}")
    expected = Words().scores("iron gold salt", jelinek_mercer)
    assert dict(ask(words, "iron gold salt", similarity=system)) == pytest.approx(expected, abs=1e-5)
