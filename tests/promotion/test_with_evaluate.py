"""What `evaluate` hands over is what `promote` takes: a real retriever on a corpus that grows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import pytest

from llm_retriever import files
from llm_retriever.bm25.sparse import LUCENE_FILE, LUCENE_FOLDER, SparseIndex
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.evaluation.zero_shot import why_no_bm25
from llm_retriever.indexing.hybrid.published import published_in
from llm_retriever.indexing.hybrid.search import HybridSearcher
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest
from llm_retriever.metrics.fusion import Fusion, united
from llm_retriever.metrics.runs import read_ranked, read_run
from llm_retriever.promotion import promote
from llm_retriever.settings import PromotionSettings
from llm_retriever.stores.opening import manifest_of
from llm_retriever.stores.registry import Registry
from tests.evaluation.conftest import unspoilt_inputs  # noqa: F401  (a fixture)
from tests.evaluation.test_evaluate import run
from tests.evaluation.test_production import NEW, old_rows, with_corpus


def night(
    directory: Path,
    made: dict[str, Path],
    production: str,
    minimum_gain: float,
    production_shards_uri: str = "",
    system: Literal["retriever", "hybrid"] = "retriever",
    **changes: Any,
) -> str:
    """URI of what is in production after a run was evaluated and judged; its outputs lie in `directory`."""
    given = {"production_uri": production, "production_shards_uri": production_shards_uri}
    run(made, directory, untuned_passages=0, **given, **changes)
    paths = {part: directory / part for part in ("evaluation", "refreshed")}
    settings = PromotionSettings(
        uri=str(directory.parent / "published"),
        minimum_gain=minimum_gain,
        first="any",
        source_fingerprint=directory.name,
        system=system,
    )
    decision = directory / "d.md"
    return promote(settings, **paths, retriever=made["retriever"], index=made["index"], decision=decision)[0]


@pytest.mark.slow
def test_a_retriever_that_stays_answers_from_an_index_of_the_grown_corpus(
    unspoilt_inputs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    first = night(tmp_path / "first", unspoilt_inputs, "", 0.0)
    grown = with_corpus(unspoilt_inputs, tmp_path / "grown", [*old_rows(unspoilt_inputs), *NEW])
    after = night(tmp_path / "second", grown, first, 1.0)
    assert after != first
    assert "10 passages were encoded for it, 40 were in the old one" in (tmp_path / "second" / "d.md").read_text()
    corpus = Collection.open(grown["collection"])
    retriever = Retriever.load(f"{after}/retriever", precision="fp32")
    index = Index.open(Path(after) / "index", retriever, verify=True)
    assert index.manifest.collection == corpus.fingerprint
    text = next(passage.text for passage in corpus.passages() if passage.id == NEW[0]["_id"])
    _, found = index.search(retriever.encode_queries([text]), 50)
    assert {row["_id"] for row in NEW} < set(found[0])
    registry = Registry(str(tmp_path / "published"))
    version = registry.production()
    assert version is not None
    content = registry.evaluation(version)
    measured = files.read_json(tmp_path / "second" / "evaluation" / "evaluation.json")
    assert {name: split["systems"]["retriever"] for name, split in content["splits"].items()} == {
        name: split["systems"]["production"] for name, split in measured["splits"].items()
    }

    assert night(tmp_path / "third", grown, after, 1.0) == after
    assert files.read_json(tmp_path / "third" / "refreshed" / "refreshed.json")["index"] is False


@pytest.mark.slow
def test_a_version_has_its_own_copy_of_shards_that_evaluate_sent_elsewhere(
    unspoilt_inputs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    first = night(tmp_path / "first", unspoilt_inputs, "", 0.0)
    grown = with_corpus(unspoilt_inputs, tmp_path / "grown", [*old_rows(unspoilt_inputs), *NEW])
    after = night(tmp_path / "second", grown, first, 1.0, str(tmp_path / "shards"))
    made = Manifest.load(tmp_path / "second" / "refreshed" / "index")
    assert Path(made.shards_uri).parent == tmp_path / "shards"
    assert not list((tmp_path / "second" / "refreshed" / "index").glob("vectors-*"))
    shutil.rmtree(tmp_path / "shards")
    shutil.rmtree(tmp_path / "second")
    retriever = Retriever.load(f"{after}/retriever", precision="fp32")
    index = Index.open(Path(after) / "index", retriever, verify=True)
    assert (index.manifest.shards_uri, index.count) == ("", 50)
    assert [shard.sha256 for shard in index.manifest.shards] == [shard.sha256 for shard in made.shards]
    assert night(tmp_path / "third", grown, after, 1.0) == after


def with_lucene(made: dict[str, Path], directory: Path) -> dict[str, Path]:
    """The inputs with Lucene's index of the collection beside the runs, as mine_negatives leaves it."""
    runs = Path(shutil.copytree(made["bm25_runs"], directory))
    with SparseIndex(Collection.open(made["collection"]), threads=1, directory=runs / LUCENE_FOLDER) as index:
        index.wait()
    files.write_json(runs / LUCENE_FILE, manifest_of(runs / LUCENE_FOLDER))
    return made | {"bm25_runs": runs}


@pytest.mark.slow
@pytest.mark.skipif(bool(why_no_bm25()), reason="without pyserini there is no index of Lucene")
def test_hybrid_search_is_judged_against_that_in_production_and_gets_the_grown_corpus(
    unspoilt_inputs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    first = night(tmp_path / "first", with_lucene(unspoilt_inputs, tmp_path / "runs"), "", 0.0, hybrid_weight=0.3)
    grown = with_corpus(unspoilt_inputs, tmp_path / "grown", [*old_rows(unspoilt_inputs), *NEW])
    grown = with_lucene(grown, tmp_path / "grown-runs")
    after = night(tmp_path / "second", grown, first, 1.0, system="hybrid", hybrid_weight=0.8)

    measured, runs = (tmp_path / "second" / "evaluation" / name for name in ("evaluation.json", "runs"))
    splits = files.read_json(measured)["splits"]
    dense, lexical = (read_ranked(runs / "test" / f"{name}.trec") for name in ("production", "BM25"))
    fused = {q: list(Fusion("convex", 0.3).best(united(dense[q], lexical[q]), 20)) for q in dense}
    assert {q: list(found) for q, found in read_run(runs / "test" / "production-hybrid.trec").items()} == fused
    assert list(splits["test"]["systems"]) == ["retriever", "hybrid", "production", "production-hybrid", "BM25"]
    decision = (tmp_path / "second" / "d.md").read_text()
    ours, theirs = (splits["graded"]["systems"][name]["ndcg@10"] for name in ("hybrid", "production-hybrid"))
    assert f"ndcg@10 {ours:.4f} against {theirs:.4f}" in decision
    assert "Hybrid search decided, on both sides." in decision

    version = Registry(str(tmp_path / "published")).production()
    assert version is not None
    assert version.refreshed_from == Path(first).name
    told, before = published_in(after), published_in(first)
    assert told is not None
    assert before is not None
    assert told.fusion == before.fusion == Fusion("convex", 0.3)
    assert told.collection == Collection.open(grown["collection"]).fingerprint != before.collection
    content = Registry(str(tmp_path / "published")).evaluation(version)
    assert content["splits"]["test"]["systems"]["hybrid"] == splits["test"]["systems"]["production-hybrid"]
    assert content["hybrid"]["weight"] == 0.3
    with HybridSearcher.load(after, precision="fp32") as searcher:
        assert NEW[0]["_id"] in dict(searcher.search([NEW[0]["text"]])[0])


@pytest.mark.slow
def test_a_version_without_hybrid_search_is_compared_by_its_retriever(
    unspoilt_inputs: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    first = night(tmp_path / "first", unspoilt_inputs, "", 0.0)
    assert published_in(first) is None
    grown = with_corpus(unspoilt_inputs, tmp_path / "grown", [*old_rows(unspoilt_inputs), *NEW])
    night(tmp_path / "second", grown, first, 1.0, system="hybrid")
    splits = files.read_json(tmp_path / "second" / "evaluation" / "evaluation.json")["splits"]
    assert "production-hybrid" not in splits["graded"]["systems"]
    decision = (tmp_path / "second" / "d.md").read_text()
    ours, theirs = (splits["graded"]["systems"][name]["ndcg@10"] for name in ("hybrid", "production"))
    assert f"ndcg@10 {ours:.4f} against {theirs:.4f}" in decision
    assert "The version in production has no hybrid search" in decision
