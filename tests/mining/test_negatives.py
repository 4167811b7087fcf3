from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.evaluation.runs import read_run
from llm_retriever.mining.negatives import mine
from llm_retriever.preparation import prepare
from llm_retriever.settings import CorpusSettings, MiningSettings
from llm_retriever.training_set import TrainingExample, TrainingSet
from tests.conftest import write_beir

SETTINGS = MiningSettings(depth=40, negatives=8, evaluation_depth=25, threads=2)


def mined_into(directory: Path, collection: Path, settings: MiningSettings = SETTINGS) -> Path:
    mine(settings, collection, directory / "training_set", directory / "runs", directory / "statistics.md")
    return directory


@pytest.fixture(scope="module")
def mined(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mined_into(tmp_path_factory.mktemp("mined"), collection.directory)


@pytest.fixture(scope="module")
def examples(mined: Path, collection: Collection) -> dict[str, TrainingExample]:
    opened = TrainingSet.open(mined / "training_set", collection)
    return {example.query_id: example for example in opened.examples()}


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_training_query_gets_negatives_that_bm25_found(examples: dict[str, TrainingExample]) -> None:
    assert list(examples)[:3] == ["q0", "q1", "q2"]
    for example in examples.values():
        assert 1 <= len(example.negatives) <= 8
        for negative in example.negatives:
            assert negative.source == "bm25"
            assert 1 <= negative.rank <= 40
            assert negative.score > 0


def test_positives_are_no_negatives(examples: dict[str, TrainingExample], collection: Collection) -> None:
    qrels = collection.qrels("train")
    for query, example in examples.items():
        assert set(example.positives) == set(qrels[query])
        assert not set(example.positives) & {negative.id for negative in example.negatives}


def test_texts_of_positives_and_queries_are_no_negatives(collection: Collection, tmp_path: Path) -> None:
    everything = MiningSettings(depth=100, negatives=100, threads=2)
    mined_into(tmp_path, collection.directory, everything)
    found = {e.query_id: {n.id for n in e.negatives} for e in TrainingSet.open(tmp_path / "training_set").examples()}
    # "twin" has the text of p0, the positive of q0; "echo" is q1 itself. For other queries both are candidates.
    assert "twin" not in found["q0"]
    assert "echo" not in found["q1"]
    assert "twin" in found["q10"]
    assert "echo" in found["q11"]


def test_a_query_without_candidates_is_dropped_and_counted(examples: dict[str, TrainingExample], mined: Path) -> None:
    assert "empty" not in examples
    counts = TrainingSet.open(mined / "training_set").manifest["counts"]
    # "the of" finds nothing, and the long query finds nothing but its positive.
    assert counts["dropped"] == {"no_positives": 0, "no_candidates": 2}
    assert counts["queries"] == 42
    assert counts["examples"] == len(examples) == 40
    assert counts["negatives"] == sum(len(example.negatives) for example in examples.values())


def test_same_inputs_give_the_same_bytes_whatever_the_threads(
    mined: Path, collection: Collection, tmp_path: Path
) -> None:
    one_thread = MiningSettings(depth=40, negatives=8, evaluation_depth=25, threads=1)
    assert content(mined_into(tmp_path, collection.directory, one_thread)) == content(mined)


def test_the_recipe_stands_in_the_manifest(mined: Path) -> None:
    recipe = TrainingSet.open(mined / "training_set").manifest["recipe"]
    assert recipe["sources"]["bm25"]["k1"] == 0.9
    assert recipe["sources"]["bm25"]["b"] == 0.4
    assert recipe["sources"]["bm25"]["depth"] == 40
    assert recipe["seed"] == 17
    assert (recipe["negatives"], recipe["rank_floor"], recipe["score_ceiling"]) == (8, 0, 0.0)


def test_every_other_split_gets_a_run(mined: Path, collection: Collection) -> None:
    assert sorted(content(mined / "runs")) == ["dev.trec", "runs.json", "test.trec"]
    for split in ("dev", "test"):
        run = read_run(mined / "runs" / f"{split}.trec")
        assert set(run) == set(collection.queries(split))
        assert all(len(ranking) == 25 for ranking in run.values())
        lines = (mined / "runs" / f"{split}.trec").read_text().splitlines()
        assert lines[0].split()[3:] == ["1", lines[0].split()[4], "BM25"]
    manifest = json.loads((mined / "runs" / "runs.json").read_text())
    assert manifest["system"] == "BM25"
    assert manifest["collection"] == collection.fingerprint
    assert manifest["parameters"]["depth"] == 25


def test_bm25_finds_what_is_there(mined: Path, collection: Collection) -> None:
    """The queries name their passage's number, so most of them find it first."""
    qrels = collection.qrels("test")
    run = read_run(mined / "runs" / "test.trec")
    assert sum(max(run[q], key=run[q].__getitem__) in qrels[q] for q in run) >= 0.8 * len(run)


def test_statistics_tell_what_was_mined(mined: Path) -> None:
    text = (mined / "statistics.md").read_text()
    assert "40 of 42 training queries" in text
    assert "2 queries dropped because no candidate was left" in text
    assert "| within the top | 1 | 5 | 10 | 20 | 40 |" in text
    assert "are positives of the query" in text


def test_a_collection_without_training_split_is_refused(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "source")
    (source / "qrels" / "train.tsv").unlink()
    prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")
    with pytest.raises(InputError, match="no split 'train'") as caught:
        mined_into(tmp_path / "out", tmp_path / "collection")
    assert "qrels/train.tsv" in caught.value.mend
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"collection\.json: no such file") as caught:
        mined_into(tmp_path / "out", tmp_path)
    assert "prepare_corpus" in caught.value.mend


def test_nothing_is_written_when_no_negative_is_left(collection: Collection, tmp_path: Path) -> None:
    copy = shutil.copytree(collection.directory, tmp_path / "collection")
    with pytest.raises(InputError, match="no training query has a negative left") as caught:
        mined_into(tmp_path / "out", copy, MiningSettings(depth=5, rank_floor=5, threads=1))
    assert "rank_floor" in caught.value.mend
    assert list((tmp_path / "out").iterdir()) == []
