"""Updates of one data set each, and a teacher's scores: what a line of the training set may hold beside ids."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator, number
from llm_retriever.contrastive.negative_sources import HomogeneousDataset, homogeneous
from llm_retriever.contrastive.tuning import tune
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import EXAMPLES_FILE, Negative, TrainingExample, TrainingSet, write_training_set
from llm_retriever.errors import InputError
from llm_retriever.methods import Schedule, method
from llm_retriever.settings import TuningSettings
from llm_retriever.training.train import TrainingRun, train
from tests.training import test_training

SIZES = {"fever": 11, "nq": 9, "squad": 4}


def written(directory: Path, sizes: dict[str, int] = SIZES) -> Path:
    """Examples of several data sets, one after the other; a query's text is the name of its data set."""
    rows = [
        {"query_id": f"{source}{i}", "query": source, "source": source, "positives": [{"id": f"{source}{i}"}]}
        | {"negatives": [{"id": f"n{i}.{j}", "source": "bm25", "rank": j, "score": 1.0} for j in range(5)]}
        for source, size in sizes.items()
        for i in range(size)
    ]
    (directory / EXAMPLES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def updates(dataset: HomogeneousDataset, epoch: int, batch_size: int = 4) -> list[list[str]]:
    dataset.set_epoch(epoch)
    groups = [dataset[item] for item in range(len(dataset))]
    return [[group.passages[0] for group in groups[i : i + batch_size]] for i in range(0, len(groups), batch_size)]


def source_of(passage: str) -> str:
    return passage.rstrip("0123456789")


def test_an_update_comes_from_one_data_set_and_every_example_at_most_once(tmp_path):
    dataset = homogeneous(ContrastiveDataset(written(tmp_path), 3, 5), 4, 5)
    found = updates(dataset, 0)
    assert [len(update) for update in found] == [4] * (11 // 4 + 9 // 4 + 4 // 4)
    assert all(len({source_of(passage) for passage in update}) == 1 for update in found)
    assert max(Counter(passage for update in found for passage in update).values()) == 1
    assert len({source_of(update[0]) for update in found[:3]}) > 1, "the data sets are shuffled"


def test_the_order_follows_from_seed_and_epoch(tmp_path):
    examples = ContrastiveDataset(written(tmp_path), 3, 5)
    one, again, other = (homogeneous(examples, 4, seed) for seed in (5, 5, 6))
    assert updates(one, 1) == updates(again, 1)
    assert updates(one, 1) != updates(one, 0)
    assert updates(one, 1) != updates(other, 1)
    everything = {p for epoch in range(6) for update in updates(one, epoch) for p in update}
    assert len(everything) == 24, "what one epoch leaves out comes in another one"


def test_one_data_set_is_taken_as_it_is(tmp_path):
    examples = ContrastiveDataset(written(tmp_path, {"nq": 9}), 3, 5)
    assert homogeneous(examples, 4, 5) is examples


def test_a_data_set_smaller_than_an_update_is_refused(tmp_path):
    with pytest.raises(InputError, match="source 'squad' has 4 examples, fewer than an update of 6; lower batch_size"):
        homogeneous(ContrastiveDataset(written(tmp_path), 3, 5), 6, 5)


@pytest.mark.slow
def test_a_training_takes_the_updates_as_they_are_dealt_and_goes_on_where_it_was_killed(tmp_path):
    def seen(run: TrainingRun, updates: int) -> list[list[str]]:
        dataset, found = homogeneous(ContrastiveDataset(written(tmp_path), 3, 5), 4, 5), []

        def loss(model, batch):
            if len(found) == 2 * updates:
                raise test_training.KilledError
            found.append(batch.pop("sources"))
            return test_training.squared(model, batch)

        def collate(groups):
            numbers = test_training.collate(list(range(len(groups))))
            return {**numbers, "sources": [source_of(group.passages[0]) for group in groups]}

        schedule = Schedule(2, 4, 2, 1e-3, 0.1, gradient_checkpointing=False)
        train(test_training.small_model(), dataset, collate, loss, schedule, run)
        return found

    whole = seen(TrainingRun("t"), 100)
    assert len(whole) == 2 * 2 * 5
    assert all(len({*whole[i], *whole[i + 1]}) == 1 for i in range(0, len(whole), 2))
    run = TrainingRun("t", checkpoints=tmp_path / "checkpoints", checkpoint_minutes=1e-9)
    with pytest.raises(test_training.KilledError):
        seen(run, 7)
    assert seen(run, 100) == whole[14:]


def scored(collection_directory: Path, training_set: Path, directory: Path, *, without: int = -1) -> Path:
    """The training set with a teacher's scores, but for one example."""
    source = Collection.open(collection_directory)
    examples = []
    for i, example in enumerate(TrainingSet.open(training_set).examples()):
        negatives = tuple(replace(n, score_teacher=-0.5 * n.rank) for n in example.negatives)
        scores = tuple(2.0 + j for j in range(len(example.positives)))
        given = {"negatives": negatives, "positives_teacher": scores}
        examples.append(example if i == without else replace(example, **given))
    write_training_set(directory, examples, {}, {}, source)
    return directory


def test_a_line_keeps_its_source_and_its_teachers_scores(tmp_path, collection_directory):
    source = Collection.open(collection_directory)
    negative = Negative("p3", "bm25", 1, 7.0, score_teacher=-1.5)
    examples = [
        TrainingExample("q1", "which river", ("p1", "p2"), (negative,), "nq", (3.0, 2.0)),
        TrainingExample("q2", "which engine", ("p4",), (replace(negative, score_teacher=None),)),
    ]
    write_training_set(tmp_path / "set", examples, {}, {}, source)
    found = TrainingSet.open(tmp_path / "set", source)
    assert list(found.examples()) == examples
    assert [example.has_teacher for example in examples] == [True, False]
    one, two = ((tmp_path / "set" / EXAMPLES_FILE).read_text()).splitlines()
    assert json.loads(one)["positives"] == [{"id": "p1", "score_teacher": 3.0}, {"id": "p2", "score_teacher": 2.0}]
    assert "source" not in {key for key in json.loads(two) if key != "negatives"}
    assert "score_teacher" not in two


def test_a_score_that_is_no_number_is_refused_with_its_line(tmp_path, collection_directory):
    write_training_set(
        tmp_path / "set", [TrainingExample("q1", "a", ("p1",), ())], {}, {}, Collection.open(collection_directory)
    )
    path = tmp_path / "set" / EXAMPLES_FILE
    path.write_text(path.read_text().replace('{"id": "p1"}', '{"id": "p1", "score_teacher": "high"}'))
    with pytest.raises(InputError, match=r"jsonl:1: .*score_teacher of passage 'p1' is not a number"):
        list(TrainingSet.open(tmp_path / "set").examples())


@pytest.fixture
def inputs(backbone_directory, collection_directory, training_set_directory) -> dict[str, Path]:
    return {
        "adapted": backbone_directory,
        "collection": collection_directory,
        "training_set": training_set_directory,
    }


def test_a_batch_brings_scores_and_numbers_of_its_passages(inputs, tmp_path):
    directory = scored(inputs["collection"], inputs["training_set"], tmp_path / "scored")
    row = replace(method("llm-ql"), query_length=110, passage_length=130)
    lookup = Collection.open(inputs["collection"]).lookup()
    collate = GroupCollator(row, AutoTokenizer.from_pretrained(inputs["adapted"]), lookup)
    groups = [ContrastiveDataset(directory, 4, 17)[item] for item in range(3)]
    batch = collate(groups)
    ranks = {
        (group.query, negative["id"]): negative["rank"]
        for group in groups
        for line in (directory / EXAMPLES_FILE).read_text().splitlines()
        for negative in json.loads(line)["negatives"]
        if json.loads(line)["query"] == group.query
    }
    for i, group in enumerate(groups):
        assert batch["passage_numbers"][4 * i : 4 * i + 4].tolist() == [number(passage) for passage in group.passages]
        assert set(batch["positive_numbers"][i].tolist()) - {-1} == {number(passage) for passage in group.positives}
        assert batch["teacher"][i][0] >= 2
        assert batch["teacher"][i][1:].tolist() == [-0.5 * ranks[group.query, p] for p in group.passages[1:]]
    unscored = [ContrastiveDataset(inputs["training_set"], 4, 17)[0], groups[0]]
    assert "teacher" not in collate(unscored)


SMALL: dict[str, Any] = {"passages_per_query": 3, "query_length": 110, "passage_length": 130, "max_steps": 3}
SMALL |= {"batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3, "lora_dropout": 0.0, "precision": "fp32"}


@pytest.mark.slow
def test_distillation_trains_and_is_on_the_card(inputs, tmp_path):
    given = inputs | {"training_set": scored(inputs["collection"], inputs["training_set"], tmp_path / "scored")}
    logs = [
        tune(TuningSettings(**SMALL, distillation_weight=weight), **given, retriever=tmp_path / f"{weight}")
        for weight in (0.0, 2.0)
    ]
    plain, distilled = ([step["loss"] for step in log.steps] for log in logs)
    assert all(more > less for less, more in zip(plain, distilled, strict=True))
    card = json.loads((tmp_path / "2.0" / "retriever_card.json").read_text())
    assert card["lineage"]["stages"][-1]["settings"]["distillation_weight"] == 2.0


def test_distillation_without_scores_is_refused_with_the_line(inputs, tmp_path):
    directory = scored(inputs["collection"], inputs["training_set"], tmp_path / "scored", without=2)
    settings = TuningSettings(**SMALL, distillation_weight=0.5)
    with pytest.raises(InputError, match=r"jsonl:3: .*\"score_teacher\": .*lacks a teacher's score"):
        tune(settings, **inputs | {"training_set": directory}, retriever=tmp_path / "retriever")


def test_homogeneous_updates_are_a_setting(inputs, tmp_path):
    source, examples = Collection.open(inputs["collection"]), TrainingSet.open(inputs["training_set"]).examples()
    named = [replace(example, source="few" if i < 3 else "many") for i, example in enumerate(examples)]
    write_training_set(tmp_path / "set", named, {}, {}, source)
    given = inputs | {"training_set": tmp_path / "set", "retriever": tmp_path / "retriever"}
    with pytest.raises(InputError, match="\"sources\": the source 'few' has 3 examples"):
        tune(TuningSettings(**SMALL, sources="homogeneous"), **given)
    tune(TuningSettings(**SMALL, sources="mixed"), **given)
