from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.data.preparation import prepare
from llm_retriever.data.training_set import TrainingExample, TrainingSet
from llm_retriever.errors import InputError
from llm_retriever.metrics.runs import read_run
from llm_retriever.settings import CorpusSettings, MiningSettings
from llm_retriever.stores.opening import manifest_of
from tests.conftest import passages, write_beir
from tests.mining.conftest import content, mined_into, write_source

SETTINGS = MiningSettings(depth=40, negatives=8, evaluation_depth=25, threads=2)


@pytest.fixture(scope="module")
def mined(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mined_into(tmp_path_factory.mktemp("mined"), collection.directory, SETTINGS)


@pytest.fixture(scope="module")
def examples(mined: Path, collection: Collection) -> dict[str, TrainingExample]:
    opened = TrainingSet.open(mined / "training_set", collection)
    return {example.query_id: example for example in opened.examples()}


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


def test_a_query_without_candidates_is_dropped_and_counted(examples: dict[str, TrainingExample], mined: Path) -> None:
    assert "empty" not in examples
    counts = TrainingSet.open(mined / "training_set").manifest["counts"]
    # "the of" finds nothing, and the long query finds nothing but its positive.
    assert counts["dropped"] == {"no_positives": 0, "nothing_found": 1, "nothing_left": 1}
    assert counts["queries"] == 42
    assert counts["examples"] == len(examples) == 40
    assert counts["negatives"] == sum(len(example.negatives) for example in examples.values())


@pytest.mark.slow
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
    assert (recipe["quotas"], recipe["near_duplicate"], recipe["random_top_up"]) == ({}, 0.9, False)


def test_every_other_split_gets_a_run(mined: Path, collection: Collection) -> None:
    assert sorted(content(mined / "runs")) == ["dev.trec", "runs.json", "test.trec"]
    told = json.loads((mined / "runs" / "lucene.json").read_text())
    assert told == manifest_of(mined / "runs" / "lucene")
    assert len(told["files"]) > 2
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
    assert "1 queries dropped because no candidate was left" in text
    assert "| within the top | 1 | 5 | 10 | 20 | 40 |" in text
    assert "| positives of the query | 41 |" in text
    assert "BM25's top 40 (k1 0.9, b 0.4;" in text
    assert "40 of 42 training queries" in (mined / "picture.html").read_text()


def test_a_collection_without_training_split_is_refused(tmp_path: Path) -> None:
    source = write_beir(tmp_path / "source")
    (source / "qrels" / "train.tsv").unlink()
    prepare(CorpusSettings(uri=str(source)), tmp_path / "collection")
    with pytest.raises(InputError, match="no split 'train'") as caught:
        mined_into(tmp_path / "out", tmp_path / "collection", SETTINGS)
    assert "qrels/train.tsv" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_no_collection_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"collection\.json: no such file") as caught:
        mined_into(tmp_path / "out", tmp_path, SETTINGS)
    assert "prepare_corpus" in caught.value.hint


@pytest.mark.slow
def test_nothing_is_written_when_no_negative_is_left(collection: Collection, tmp_path: Path) -> None:
    copy = shutil.copytree(collection.directory, tmp_path / "collection")
    with pytest.raises(InputError, match="no training query has a negative left") as caught:
        mined_into(tmp_path / "out", copy, MiningSettings(depth=5, rank_floor=5, threads=1))
    assert "rank_floor" in caught.value.hint
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_texts_that_say_what_a_positive_or_the_query_says_are_no_negatives(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    near = {"_id": "near", "title": "", "text": passages()[2]["text"].replace("2.", "two.")}
    with (tmp_path / "source" / "corpus.jsonl").open("a") as file:
        file.write(json.dumps(near) + "\n")
    prepare(CorpusSettings(uri=str(tmp_path / "source"), deduplicate=False), tmp_path / "collection")
    everything = MiningSettings(depth=100, negatives=100, near_duplicate=0.8, threads=2)
    mined_into(tmp_path / "out", tmp_path / "collection", everything)
    opened = TrainingSet.open(tmp_path / "out" / "training_set")
    found = {e.query_id: {n.id for n in e.negatives} for e in opened.examples()}
    # "twin" has the text of p0, the positive of q0; "echo" is q1 itself; "near" has all words of p2, the positive of q2,
    # but the last: 12 of 14 3-grams, or 0.86. For other queries all three are candidates.
    assert "twin" not in found["q0"]
    assert "echo" not in found["q1"]
    assert "near" not in found["q2"]
    assert "twin" in found["q10"]
    assert "echo" in found["q11"]
    assert "near" in found["q12"]
    assert opened.manifest["counts"]["near_duplicates"] == 1


@pytest.fixture(scope="module")
def topped_up(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mined with tuned BM25, so few candidates that random passages must help out."""
    settings = MiningSettings(
        depth=3, negatives=8, random_top_up=True, bm25_tune_split="train", bm25_tune_queries=10, threads=1
    )
    return mined_into(tmp_path_factory.mktemp("topped_up"), collection.directory, settings)


def test_random_passages_top_up_where_it_is_wanted(topped_up: Path, collection: Collection) -> None:
    opened = TrainingSet.open(topped_up / "training_set", collection)
    examples = {e.query_id: e for e in opened.examples()}
    assert {len(e.negatives) for e in examples.values()} == {8}
    assert {n.source for n in examples["empty"].negatives} == {"random"}
    assert {n.source for n in examples["q0"].negatives} == {"bm25", "random"}
    negatives = [n for e in examples.values() for n in e.negatives]
    assert opened.manifest["counts"]["random"] == sum(n.source == "random" for n in negatives)
    qrels = collection.qrels("train")
    assert all(not set(qrels[query]) & {n.id for n in e.negatives} for query, e in examples.items())


def test_tuned_parameters_reach_runs_and_manifests(topped_up: Path) -> None:
    recipe = TrainingSet.open(topped_up / "training_set").manifest["recipe"]["sources"]["bm25"]
    tuning = recipe["tuning"]
    assert (tuning["split"], tuning["queries"], tuning["metric"]) == ("train", 10, "mrr@10")
    assert {(cell["k1"], cell["b"]) for cell in tuning["grid"]} >= {(0.9, 0.4), (0.82, 0.68), (1.2, 0.75)}
    assert tuning["best"]["mrr@10"] == max(cell["mrr@10"] for cell in tuning["grid"])
    runs = json.loads((topped_up / "runs" / "runs.json").read_text())
    assert (recipe["k1"], recipe["b"]) == (tuning["best"]["k1"], tuning["best"]["b"])
    assert (runs["parameters"]["k1"], runs["parameters"]["b"]) == (recipe["k1"], recipe["b"])
    assert runs["tuning"] == tuning
    assert f"**{tuning['best']['mrr@10']:.4f}**" in (topped_up / "statistics.md").read_text()


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (MiningSettings(sources="dense"), "sources"),
        (MiningSettings(baselines="lmd"), "baselines"),
        (MiningSettings(bm25_tune_split="elsewhere"), "bm25_tune_split"),
        (MiningSettings(bm25_tune_split="dev", bm25_k1=1.2), "bm25_k1"),
    ],
)
def test_settings_that_do_not_suit_are_refused_before_any_work(
    settings: MiningSettings, field: str, collection: Collection, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        mined_into(tmp_path / "out", collection.directory, settings)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def with_number_ids(directory: Path, *, holding_queries: bool) -> Collection:
    """A collection whose ids are numbers on both sides; the answer to a query is the passage behind that of its id."""
    rows = passages(30)
    asked = [row["text"] if holding_queries else f"{row['text'][:30]} of which kind" for row in rows]
    (directory / "source" / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", [row["text"] for row in rows]), ("queries", asked)):
        lines = (json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
        (directory / "source" / f"{name}.jsonl").write_text("".join(lines))
    for split, numbers in (("train", range(20)), ("test", range(20, 30))):
        judged = [f"{i}\t{(i + 1) % 30}\t1\n" for i in numbers]
        # A query that is answered by the passage of its own id.
        judged[-1] = f"{numbers[-1]}\t{numbers[-1]}\t1\n"
        (directory / "source" / "qrels" / f"{split}.tsv").write_text("".join(judged))
    prepare(CorpusSettings(uri=str(directory / "source")), directory / "collection")
    return Collection.open(directory / "collection")


@pytest.mark.slow
@pytest.mark.parametrize("holding_queries", [True, False])
def test_a_run_leaves_out_a_query_that_is_a_passage_and_not_a_passage_of_its_number(
    tmp_path: Path, holding_queries: bool
) -> None:
    made = with_number_ids(tmp_path, holding_queries=holding_queries)
    settings = dataclasses.replace(SETTINGS, evaluation_depth=5, bm25_tune_split="test", bm25_tune_metric="mrr@10")
    mined_into(tmp_path, made.directory, settings)
    run = read_run(tmp_path / "runs" / "test.trec")
    own = {query for query, ranking in run.items() if query in ranking}
    assert own == ({"29"} if holding_queries else set(run))
    assert {len(ranking) for ranking in run.values()} == {5}


@pytest.mark.slow
def test_a_passage_that_is_the_query_by_the_collections_rule_is_no_negative(tmp_path: Path) -> None:
    with_number_ids(tmp_path, holding_queries=False)
    drawn = {}
    for wish in ("keep", "remove"):
        settings = CorpusSettings(uri=str(tmp_path / "source"), own_passages=wish)
        prepare(settings, tmp_path / wish / "collection")
        mined_into(tmp_path / wish, tmp_path / wish / "collection", dataclasses.replace(SETTINGS, negatives=30))
        examples = TrainingSet.open(tmp_path / wish / "training_set").examples()
        drawn[wish] = {e.query_id for e in examples if e.query_id in {n.id for n in e.negatives}}
    assert drawn["remove"] == set()
    assert len(drawn["keep"]) > 10
