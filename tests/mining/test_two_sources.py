"""Negatives of two sources: BM25 and a retriever that was made here, as in a second round."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import Found, TrainingExample, TrainingSet
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.evaluation.systems import BM25Runs
from llm_retriever.metrics.runs import read_run
from llm_retriever.settings import MiningSettings
from tests.mining.conftest import content, mined_into

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mixed_settings(retriever_directory: Path) -> MiningSettings:
    return MiningSettings(
        depth=20,
        negatives=10,
        sources="bm25:4,dense:5",
        encoder=str(retriever_directory),
        precision="fp32",
        baselines="qld,qljm:0.2",
        evaluation_depth=5,
        threads=2,
    )


@pytest.fixture(scope="module")
def mixed(collection: Collection, mixed_settings: MiningSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mined with BM25 and a retriever that was made here, as in a second round."""
    return mined_into(tmp_path_factory.mktemp("mixed"), collection.directory, mixed_settings)


def of_source(examples: Iterable[TrainingExample], source: str) -> Iterator[tuple[str, str, Found]]:
    """(query, passage, place) wherever a source found a negative."""
    for example in examples:
        for n in example.negatives:
            for place in (Found(n.source, n.rank, n.score), *n.also):
                if place.source == source:
                    yield example.query_id, n.id, place


def test_a_second_round_mixes_bm25_with_the_retriever_of_the_first(
    mixed: Path, collection: Collection, retriever_directory: Path
) -> None:
    retriever = Retriever.load(retriever_directory, precision="fp32")
    passages, queries = list(collection.passages()), collection.queries("train")
    scores = retriever.encode_queries(list(queries.values())) @ retriever.encode_passages(passages).T
    ranked = {
        query: sorted(((float(s), p.id) for s, p in zip(row, passages, strict=True)), reverse=True)
        for query, row in zip(queries, scores, strict=True)
    }
    examples = list(TrainingSet.open(mixed / "training_set", collection).examples())
    dense = list(of_source(examples, "dense"))
    assert len(dense) >= 5 * len(examples)
    assert len(list(of_source(examples, "bm25"))) >= 4 * (len(examples) - 2)
    for query, passage, place in dense:
        assert 1 <= place.rank <= 20
        # Scores that lie closer together than float32 rounds may stand in another order.
        assert place.score == pytest.approx(ranked[query][place.rank - 1][0], abs=1e-5)
        assert place.score == pytest.approx(next(s for s, p in ranked[query] if p == passage), abs=1e-5)


def test_a_query_that_bm25_finds_nothing_for_gets_dense_negatives(mixed: Path) -> None:
    examples = {e.query_id: e for e in TrainingSet.open(mixed / "training_set").examples()}
    assert {n.source for n in examples["empty"].negatives} == {"dense"}
    assert len(examples["empty"].negatives) == 10


def test_positives_and_their_twins_are_no_negatives_of_any_source(mixed: Path, collection: Collection) -> None:
    qrels = collection.qrels("train")
    examples = {e.query_id: e for e in TrainingSet.open(mixed / "training_set").examples()}
    assert all(not set(qrels[query]) & {n.id for n in e.negatives} for query, e in examples.items())
    assert "twin" not in {n.id for n in examples["q0"].negatives}


def test_the_manifest_names_every_source_and_what_it_gave(
    mixed: Path, mixed_settings: MiningSettings, retriever_directory: Path
) -> None:
    manifest = TrainingSet.open(mixed / "training_set").manifest
    dense = manifest["recipe"]["sources"]["dense"]
    assert dense["identity"] == Retriever.load(retriever_directory, precision="fp32").identity()
    assert (dense["depth"], dense["dtype"], dense["precision"]) == (20, "fp32", "fp32")
    assert manifest["recipe"]["quotas"] == {"bm25": 4, "dense": 5}
    counts = manifest["counts"]
    examples = list(TrainingSet.open(mixed / "training_set").examples())
    negatives = [n for e in examples for n in e.negatives]
    for source in ("bm25", "dense"):
        assert counts["sources"][source]["negatives"] == sum(n.source == source for n in negatives)
    assert counts["found_by_several"] == sum(bool(n.also) for n in negatives) > 0
    assert counts["sources"]["dense"]["candidates"] == 42 * 20


def test_the_encoded_corpus_goes_when_the_training_set_is_there(mixed: Path) -> None:
    assert {path.name for path in mixed.iterdir()} == {"training_set", "runs", "statistics.md", "picture.html"}


def test_the_same_mix_gives_the_same_bytes_whatever_the_threads(
    mixed: Path, mixed_settings: MiningSettings, collection: Collection, tmp_path: Path
) -> None:
    again = dataclasses.replace(mixed_settings, threads=1)
    assert content(mined_into(tmp_path, collection.directory, again)) == content(mixed)


def test_query_likelihood_gets_runs_beside_bm25(mixed: Path, collection: Collection) -> None:
    systems = json.loads((mixed / "runs" / "runs.json").read_text())["systems"]
    assert {name: system["files"] for name, system in systems.items()} == {
        "QLM-D": {"dev": "dev.qld.trec", "test": "test.qld.trec"},
        "QLM-JM": {"dev": "dev.qljm.trec", "test": "test.qljm.trec"},
    }
    assert systems["QLM-D"]["parameters"]["mu"] == 1000.0
    assert systems["QLM-JM"]["parameters"]["lambda"] == 0.2
    assert systems["QLM-D"]["description"] == "query likelihood, Dirichlet smoothing"
    for system in systems.values():
        for split, file in system["files"].items():
            run = read_run(mixed / "runs" / file)
            assert set(run) == set(collection.queries(split))
            assert all(len(ranking) == 5 for ranking in run.values())
    assert read_run(mixed / "runs" / "test.qld.trec") != read_run(mixed / "runs" / "test.trec")
    reader = BM25Runs(mixed / "runs", collection)
    assert list(reader.systems) == ["BM25", "QLM-D", "QLM-JM"]
    assert reader.run("test", 5, "QLM-D") == read_run(mixed / "runs" / "test.qld.trec")
