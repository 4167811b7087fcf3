from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from llm_retriever.bm25.sparse import SparseIndex
from llm_retriever.bm25.tuning import Tuning, tune
from llm_retriever.data.collection import Collection
from llm_retriever.data.preparation import prepare
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings, MiningSettings

GRID = ((0.9,), (0.0, 0.9))
PADDING = " ".join(f"word{i}" for i in range(40))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The query finds a short passage that names zinc once, and a long one that names it twice.

    Without length normalisation the long one comes first, with much of it the short one. Split train judges the short one
    relevant, split dev the long one.
    """
    root = tmp_path_factory.mktemp("tuning")
    (root / "in" / "qrels").mkdir(parents=True)
    texts = {"short": "zinc ore", "long": f"zinc zinc {PADDING}", "other": "iron and salt", "zinc?": "zinc"}
    rows = [json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in texts.items()]
    (root / "in" / "corpus.jsonl").write_text("".join(rows))
    asked = [json.dumps({"_id": query, "text": "zinc"}) + "\n" for query in ("zinc?", "asked")]
    (root / "in" / "queries.jsonl").write_text("".join(asked))
    # The query of train has the id of a passage, which would be the first by any length normalisation.
    for split, query, passage in (("train", "zinc?", "short"), ("dev", "zinc?", "long")):
        (root / "in" / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\t{passage}\t1\n")
    (root / "in" / "qrels" / "none.tsv").write_text("query-id\tcorpus-id\tscore\nasked\tother\t0\n")
    prepare(CorpusSettings(uri=str(root / "in")), root / "out")
    return Collection.open(root / "out")


@pytest.fixture(scope="module")
def tuned(collection: Collection) -> Callable[[MiningSettings], Tuning]:
    with SparseIndex(collection, threads=1) as index:
        yield lambda settings: tune(index, collection, settings, GRID)


def test_the_best_cell_of_the_grid_is_taken(tuned: Callable[[MiningSettings], Tuning]) -> None:
    short = tuned(MiningSettings(bm25_tune_split="train"))
    assert short.values == {(0.9, 0.0): 0.5, (0.9, 0.9): 1.0}
    assert short.best == (0.9, 0.9)
    long = tuned(MiningSettings(bm25_tune_split="dev", bm25_tune_metric="ndcg@10"))
    assert long.best == (0.9, 0.0)
    assert long.values[0.9, 0.9] == pytest.approx(0.6309, abs=1e-4)


def test_the_table_tells_split_metric_and_every_cell(tuned: Callable[[MiningSettings], Tuning]) -> None:
    assert tuned(MiningSettings(bm25_tune_split="train")).as_json() == {
        "split": "train",
        "queries": 1,
        "metric": "mrr@10",
        "best": {"k1": 0.9, "b": 0.9, "mrr@10": 1.0},
        "grid": [{"k1": 0.9, "b": 0.0, "mrr@10": 0.5}, {"k1": 0.9, "b": 0.9, "mrr@10": 1.0}],
    }


def test_of_equal_cells_the_first_is_taken() -> None:
    values = {(0.5, 0.4): 0.2, (0.5, 0.9): 0.3, (0.9, 0.4): 0.3}
    assert Tuning("train", 1, "mrr@10", values).best == (0.5, 0.9)


def test_a_split_without_relevant_passages_is_refused(tuned: Callable[[MiningSettings], Tuning]) -> None:
    with pytest.raises(InputError, match="no query of 'none'") as caught:
        tuned(MiningSettings(bm25_tune_split="none"))
    assert caught.value.field == "bm25_tune_split"
