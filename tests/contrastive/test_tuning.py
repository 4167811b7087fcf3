"""Contrastive tuning from the adapted backbone to a retriever that can be used."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest
import torch

from llm_retriever.contrastive import tuning
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.contrastive.tuning import resolved_method, tune
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_queries import read_training_queries, were_trained_on
from llm_retriever.data.training_set import write_training_set
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.errors import InputError
from llm_retriever.files.seal import SEAL
from llm_retriever.methods import method
from llm_retriever.models.card import RetrieverCard, load_lineage
from llm_retriever.settings import TuningSettings

SMALL = {
    "passages_per_query": 4,
    "temperature": 0.05,
    "query_length": 110,
    "passage_length": 130,
    "epochs": 1,
    "batch_size": 14,
    "micro_batch_size": 14,
    "learning_rate": 3e-3,
    "gradient_checkpointing": "off",
    "precision": "fp32",
    "processes": 1,
}


@pytest.fixture(scope="module")
def inputs(backbone_directory, collection_directory, training_set_directory):
    return {
        "adapted": backbone_directory,
        "collection": collection_directory,
        "training_set": training_set_directory,
    }


@pytest.fixture(scope="module")
def tuned(inputs, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tuned") / "retriever"
    return directory, tune(TuningSettings(**SMALL), **inputs, retriever=directory)


def mean_rank(retriever: Retriever, collection: Collection) -> float:
    """Mean rank of the positive among all passages, over the training queries."""
    passages, judged = list(collection.passages()), collection.qrels("train")
    queries = collection.queries("train")
    scores = retriever.encode_queries(list(queries.values())) @ retriever.encode_passages(passages).T
    place = {passage.id: i for i, passage in enumerate(passages)}
    positives = [place[next(iter(judged[query]))] for query in queries]
    return float(np.mean([(row > row[i]).sum() + 1 for row, i in zip(scores, positives, strict=True)]))


@pytest.mark.slow
def test_tuning_lowers_the_loss_and_ranks_the_positives_higher(inputs, tmp_path):
    long = {"tune": "full", "passages_per_query": 2, "epochs": 12, "batch_size": 7, "micro_batch_size": 7}
    log = tune(TuningSettings(**SMALL | long), **inputs, retriever=tmp_path / "retriever")
    assert log.metrics()["loss_end"] < 0.5 * log.metrics()["loss_start"]
    collection, after = Collection.open(inputs["collection"]), Retriever.load(tmp_path / "retriever", precision="fp32")
    before = Retriever.on_backbone(inputs["adapted"], after.card, precision="fp32")
    assert mean_rank(after, collection) < 0.5 * mean_rank(before, collection)


@pytest.mark.slow
def test_fewer_queries_than_a_batch_train_with_the_recipes_own_schedule(inputs, tmp_path):
    recipe = {name: value for name, value in SMALL.items() if name not in ("batch_size", "learning_rate", "epochs")}
    log = tune(TuningSettings(**recipe), **inputs, retriever=tmp_path / "retriever")
    assert [entry["learning_rate"] for entry in log.steps] == [1e-4]
    assert Retriever.load(tmp_path / "retriever", precision="fp32").card.method == "llm-ql"


def test_the_directory_has_card_model_and_adapter_and_no_checkpoints(tuned):
    directory, _ = tuned
    assert sorted(path.name for path in directory.iterdir()) == [
        SEAL,
        "adapter",
        "model",
        "retriever_card.json",
        "training_log.json",
        "training_queries.npy",
    ]
    assert [path.name for path in directory.parent.iterdir() if path != directory] in ([], [".retriever.checkpoints"])
    assert not list(directory.parent.glob(".retriever.checkpoints/*"))


def test_a_retriever_knows_which_queries_it_was_trained_on(tuned, inputs):
    listed, collection = read_training_queries(tuned[0]), Collection.open(inputs["collection"])
    assert were_trained_on(listed, collection.queries("train").values()).all()
    assert not were_trained_on(listed, [f"{text}?!" for text in collection.queries("train").values()]).any()


def test_the_card_tells_wording_lengths_and_where_the_model_comes_from(tuned, inputs):
    directory, log = tuned
    card, before = RetrieverCard.load(directory), load_lineage(inputs["adapted"])
    assert (card.query_length, card.passage_length) == (110, 130)
    assert card.query == method("llm-ql").query
    *earlier, stage = card.lineage.stages
    assert tuple(earlier) == before.stages
    assert card.lineage.source == before.source
    assert (stage.stage, stage.examples, stage.seconds) == ("contrastive", log.examples, log.seconds)
    assert stage.settings["temperature"] == 0.05
    assert stage.settings["schedule"]["learning_rate"] == 3e-3
    assert card.versions["torch"] == torch.__version__


def test_a_text_has_the_same_vector_in_training_and_in_use(tuned, inputs, collection_directory):
    from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator

    directory, _ = tuned
    retriever, row = Retriever.load(directory, precision="fp32"), resolved_method(TuningSettings(**SMALL))
    collection = Collection.open(collection_directory)
    dataset = ContrastiveDataset(inputs["training_set"], 4, 17)
    collate, groups = GroupCollator(row, retriever.tokenizer, collection.lookup()), [dataset[i] for i in range(5)]
    batch, loss = collate(groups), ContrastiveLoss(row)
    with torch.no_grad():
        queries = loss.encode(retriever.model, batch["query_ids"], batch["query_mask"])
        passages = loss.encode(retriever.model, batch["passage_ids"], batch["passage_mask"])
    lookup = collection.lookup()
    used = retriever.encode_passages([lookup[i] for group in groups for i in group.passages])
    np.testing.assert_allclose(retriever.encode_queries([g.query for g in groups]), queries.numpy(), atol=1e-5)
    np.testing.assert_allclose(used, passages.numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_retriever(inputs, tmp_path):
    digests = set()
    for name in ("one", "two"):
        tune(TuningSettings(**SMALL | {"max_steps": 2}), **inputs, retriever=tmp_path / name)
        digests.add(RetrieverCard.load(tmp_path / name).digest())
    assert len(digests) == 1


@pytest.mark.slow
def test_all_weights_can_be_tuned(inputs, tmp_path):
    changed = {"tune": "full", "learning_rate": 1e-3, "max_steps": 4}
    tune(TuningSettings(**SMALL | changed), **inputs, retriever=tmp_path / "retriever")
    assert not (tmp_path / "retriever" / "adapter").exists()
    assert Retriever.load(tmp_path / "retriever").dimension == 64


def test_settings_override_the_recipe_and_nothing_else():
    row = resolved_method(TuningSettings(temperature=0.02, lora_rank=8, gradient_checkpointing="off"))
    published = method("llm-ql").tuning
    assert (row.tuning.temperature, row.tuning.lora.rank) == (0.02, 8)
    assert row.tuning.schedule.gradient_checkpointing is False
    assert (row.tuning.passages_per_query, row.tuning.lora.alpha) == (
        published.passages_per_query,
        published.lora.alpha,
    )
    assert row.tuning.schedule.batch_size == published.schedule.batch_size


def refused(inputs, tmp_path, **changes) -> str:
    settings = changes.pop("settings", {})
    with pytest.raises(InputError) as caught:
        tune(TuningSettings(**SMALL | settings), **inputs | changes, retriever=tmp_path / "retriever")
    assert not (tmp_path / "retriever").exists()
    return str(caught.value)


def test_a_training_set_without_examples_is_refused(inputs, tmp_path):
    write_training_set(tmp_path / "empty", [], {}, {}, Collection.open(inputs["collection"]))
    assert "has no examples; mine it from" in refused(inputs, tmp_path, training_set=tmp_path / "empty")


def test_lengths_without_room_for_a_text_are_refused(inputs, tmp_path):
    assert "20 tokens leave no room" in refused(inputs, tmp_path, settings={"query_length": 20})


def test_a_prefix_that_is_the_whole_vector_is_refused(inputs, tmp_path):
    said = refused(inputs, tmp_path, settings={"matryoshka_dimensions": "8,64"})
    assert 'field "matryoshka_dimensions": vectors have 64 numbers, of which 64 are no prefix' in said


def test_a_directory_that_is_no_backbone_is_refused(inputs, tmp_path):
    assert "fetch_backbone" in refused(inputs, tmp_path, adapted=inputs["collection"])


def test_a_collapse_of_the_loss_leaves_nothing_behind(inputs, tmp_path):
    said = refused(inputs, tmp_path, settings={"learning_rate": 1e30, "max_steps": 6})
    assert '"learning_rate": the loss became nan' in said


def test_a_training_that_learns_nothing_says_so(inputs, tmp_path, capsys):
    settings = {"temperature": 100.0, "max_steps": 2, "batch_size": 4, "passages_per_query": 3}
    tune(TuningSettings(**SMALL | settings), **inputs, retriever=tmp_path / "flat")
    assert "that of guessing one of 12 passages: nothing was learnt" in capsys.readouterr().err
    tune(TuningSettings(**SMALL | settings | {"temperature": 0.05}), **inputs, retriever=tmp_path / "steep")
    assert "nothing was learnt" not in capsys.readouterr().err


def test_a_card_names_no_version_of_a_package_that_is_not_installed(monkeypatch):
    installed = importlib.metadata.version

    def without_deepspeed(name: str) -> str:
        if name == "deepspeed":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", without_deepspeed)
    assert "deepspeed" not in tuning.versions()
    assert tuning.versions()["torch"] == torch.__version__
