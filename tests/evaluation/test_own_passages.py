"""A passage with the query's own id: left out where the corpus holds its queries, never because ids happen to be equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_retriever import files
from llm_retriever.data import preparation
from llm_retriever.data.collection import MANIFEST_FILE, Collection
from llm_retriever.data.collection_report import statistics_markdown
from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.metrics.runs import Run, read_run
from llm_retriever.settings import CorpusSettings, EvaluationSettings

Texts = dict[str, str]
Qrels = dict[str, dict[str, int]]
SETTINGS = EvaluationSettings(depth=10, measures="mrr@10,ndcg@10", primary_metric="ndcg@10")
NUMBERS = [str(i) for i in range(12)]
PASSAGES = {i: f"The passage number {i} tells of {int(i) * 7} things." for i in NUMBERS}
QUESTIONS = {i: f"how many things are in number {i}" for i in NUMBERS}
NEXT = {i: str((int(i) + 1) % 12) for i in NUMBERS}


def prepared(tmp_path: Path, queries: Texts, qrels: Qrels, titles: Texts | None = None, **settings: Any) -> Collection:
    source = tmp_path / "source"
    (source / "qrels").mkdir(parents=True)
    rows = [{"_id": i, "title": (titles or {}).get(i, ""), "text": text} for i, text in PASSAGES.items()]
    asked = [{"_id": i, "text": text} for i, text in queries.items()]
    for name, lines in (("corpus", rows), ("queries", asked)):
        (source / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = [f"{query}\t{passage}\t{g}\n" for query, found in qrels.items() for passage, g in found.items()]
    (source / "qrels" / "test.tsv").write_text("".join(judged))
    preparation.prepare(CorpusSettings(uri=str(source), **settings), tmp_path / "collection")
    return Collection.open(tmp_path / "collection")


def itself_first(queries: Texts) -> Run:
    """The passage of the query's own id, then the next ones."""
    return {q: {str((int(q) + rank) % 12): 12.0 - rank for rank in range(11)} for q in queries}


def evaluated(corpus: Collection, run: Run, runs: Path) -> tuple[dict[str, Any], Run]:
    """The results of the split test, and the run that was kept."""
    bench = Bench(SETTINGS, corpus, runs)
    for system in ("retriever", "other"):
        bench.add_run(bench.splits[0], system, run)
    return bench.results()["test"], read_run(runs / "test" / "retriever.trec")


def test_the_answer_to_a_query_stays_whatever_its_id_is(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, QUESTIONS, {i: {i: 1} for i in NUMBERS})
    results, kept = evaluated(corpus, itself_first(QUESTIONS), tmp_path / "runs")
    assert results["systems"]["retriever"]["ndcg@10"] == 1.0
    assert all(next(iter(ranking)) == query for query, ranking in kept.items())
    assert "own_passages" not in results
    assert results["notes"] == []


def test_equal_ids_of_other_texts_are_no_reason_to_remove(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, QUESTIONS, {i: {NEXT[i]: 1} for i in NUMBERS})
    results, kept = evaluated(corpus, itself_first(QUESTIONS), tmp_path / "runs")
    assert results["systems"]["retriever"]["mrr@10"] == 0.5, "the passage on top is a wrong answer, not the query"
    assert all(next(iter(ranking)) == query and len(ranking) == 10 for query, ranking in kept.items())


@pytest.mark.parametrize(
    ("texts", "titles"),
    [
        (PASSAGES, {}),
        ({i: text.upper() for i, text in PASSAGES.items()}, {}),
        (PASSAGES, dict.fromkeys(NUMBERS, "economy")),  # ArguAna: topics as titles
        ({i: f"Number {i}. {text}" for i, text in PASSAGES.items()}, {i: f"Number {i}." for i in NUMBERS}),
        ({**PASSAGES, "3": "another text", "4": "and another"}, {}),  # Most of them are the query.
    ],
)
def test_a_corpus_that_holds_its_queries_leaves_them_out_of_their_rankings(
    tmp_path: Path, texts: Texts, titles: Texts
) -> None:
    corpus = prepared(tmp_path, texts, {i: {NEXT[i]: 1} for i in NUMBERS}, titles)
    results, kept = evaluated(corpus, itself_first(texts), tmp_path / "runs")
    assert results["systems"]["retriever"]["ndcg@10"] == 1.0
    assert all(query not in ranking and len(ranking) == 10 for query, ranking in kept.items())
    assert results["own_passages"] == {"queries": 12, "left_out": {"retriever": 12, "other": 12}}
    assert results["notes"][0].startswith("12 queries have the id of a passage")
    assert results["notes"][0].endswith("12 of retriever, 12 of other.")
    assert "12 queries have the id of a passage" in statistics_markdown(corpus.manifest)


def test_of_a_corpus_that_holds_its_queries_the_relevant_ones_stay(tmp_path: Path) -> None:
    qrels = {i: {NEXT[i]: 1} for i in NUMBERS} | {"5": {"5": 2, "6": 1}, "7": {"7": 0, "8": 1}}
    corpus = prepared(tmp_path, PASSAGES, qrels)
    results, kept = evaluated(corpus, itself_first(PASSAGES), tmp_path / "runs")
    assert [query for query, ranking in kept.items() if query in ranking] == ["5"]
    assert results["own_passages"]["queries"] == 11
    assert results["systems"]["retriever"]["ndcg@10"] == 1.0


@pytest.mark.parametrize(("wish", "texts", "removed"), [("remove", QUESTIONS, True), ("keep", PASSAGES, False)])
def test_a_setting_decides_against_the_texts(tmp_path: Path, wish: str, texts: Texts, removed: bool) -> None:
    corpus = prepared(tmp_path, texts, {i: {NEXT[i]: 1} for i in NUMBERS}, own_passages=wish)
    results, _ = evaluated(corpus, itself_first(texts), tmp_path / "runs")
    assert results["systems"]["retriever"]["mrr@10"] == (1.0 if removed else 0.5)


def test_without_passages_of_their_ids_nothing_is_left_out_nor_searched_deeper(tmp_path: Path) -> None:
    queries = {f"q{i}": text for i, text in PASSAGES.items()}
    corpus = prepared(tmp_path, queries, {f"q{i}": {NEXT[i]: 1} for i in NUMBERS}, own_passages="remove")
    bench = Bench(SETTINGS, corpus, tmp_path / "runs")
    assert (bench.splits[0].own, bench.splits[0].depth) == (frozenset(), 10)


def test_a_collection_of_an_earlier_release_removes_as_it_did_but_for_what_is_relevant(tmp_path: Path) -> None:
    qrels = {i: {NEXT[i]: 1} for i in NUMBERS} | {"5": {"5": 1}}
    corpus = prepared(tmp_path, QUESTIONS, qrels)
    manifest = files.read_json(corpus.directory / MANIFEST_FILE)
    assert manifest.pop("own_passages") == {"removed": False, "queries": 12, "compared": 12, "same_text": 0}
    files.write_json(corpus.directory / MANIFEST_FILE, manifest)
    earlier = Collection.open(corpus.directory)
    assert earlier.own_passages("test") == frozenset(NUMBERS) - {"5"}


def test_a_subset_of_the_passages_does_not_hide_that_the_corpus_holds_its_queries(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, PASSAGES, {i: {"1": 1} for i in NUMBERS[2:]}, max_passages=2)
    assert corpus.passage_count == 2
    assert corpus.removes_own_passages
