"""A teacher's scores of the source: they stand beside the passages that are mined, and rank what they score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm_retriever import methods
from llm_retriever.contrastive.tuning import check_teacher_scores
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import Negative, TrainingExample, TrainingSet
from llm_retriever.errors import InputError
from llm_retriever.mining.negatives import with_scores
from llm_retriever.settings import MiningSettings
from tests.data.sources.test_layouts import ROWS, prepared
from tests.data.sources.test_many_layouts import TRAIN, write_scored
from tests.mining.conftest import mined_into


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    directory = tmp_path_factory.mktemp("scored")
    return prepared(write_scored(directory / "source"), directory / "collection", heldout_queries=0)


def test_negatives_that_the_source_has_scored_can_be_distilled(scored: Collection, tmp_path: Path) -> None:
    settings = MiningSettings(negatives=2, sources="teacher", near_duplicate=0, threads=1)
    mined = mined_into(tmp_path, scored.directory, settings)
    found = TrainingSet.open(mined / "training_set", scored)
    texts = {passage.id: passage.text for passage in scored.passages()}
    numbers = {query: number for number, (query, _, _) in enumerate(TRAIN)}
    for example in found.examples():
        assert example.has_teacher
        assert example.positives_teacher == (9.0,)
        first, second = example.negatives
        assert (first.source, first.rank, texts[second.id]) == ("teacher", 2, ROWS[-1]["text"])
        assert (first.score_teacher, second.score_teacher) == (numbers[example.query] / 8, -2.5)
    method = methods.method("repllama")
    check_teacher_scores(replace(method, tuning=replace(method.tuning, distillation_weight=1.0)), found)
    assert "what the source's teacher has scored" in (mined / "statistics.md").read_text()


def test_a_collection_without_scores_has_no_such_source(collection: Collection, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'field "sources": \'teacher\' is refused; name bm25, each once'):
        mined_into(tmp_path, collection.directory, MiningSettings(sources="teacher"))


def test_scores_stand_beside_what_they_are_of() -> None:
    negatives = (Negative("n", "bm25", 1, 3.0), Negative("m", "bm25", 2, 2.0))
    example = TrainingExample("q", "query", ("a", "b"), negatives)
    half = with_scores(example, {"a": 1.0, "n": 0.5})
    assert half.positives_teacher == ()
    assert [n.score_teacher for n in half.negatives] == [0.5, None]
    assert with_scores(example, {"a": 1.0, "b": 2.0, "n": 0.0, "m": -1.0}).has_teacher
    assert with_scores(example, {}) == example
