from __future__ import annotations

import dataclasses
import math

import pytest

from llm_retriever.contrastive.tuning import resolved_method
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.evaluation.efficiency import (
    operations_per_weight,
    table,
    tokens_at_most,
    training,
)
from llm_retriever.evaluation.systems import DenseSystem
from llm_retriever.indexing.index import Index
from llm_retriever.models.card import Stage
from llm_retriever.settings import TuningSettings


@pytest.fixture(scope="module")
def searched(unspoilt_inputs):
    """The retriever of the inputs after the search of a split; not to be changed."""
    corpus = Collection.open(unspoilt_inputs["collection"])
    retriever = Retriever.load(unspoilt_inputs["retriever"], precision="fp32")
    system = DenseSystem(retriever, Index.open(unspoilt_inputs["index"], retriever))
    system.run(corpus.queries("test"), 10)
    return system


def contrastive(**changes):
    """A stage as tune_retriever writes it, with its real recipe."""
    row = resolved_method(TuningSettings(method="llm-ql"))
    lengths = {"query_length": 64, "passage_length": 200, "processes": 8}
    return Stage("contrastive", {**dataclasses.asdict(row.tuning), **lengths, **changes}, seconds=3600.0, examples=100)


def test_the_table_tells_what_the_index_and_the_searches_took(searched):
    found = table(searched.encoder.card, searched)
    manifest = searched.index.manifest
    tokens = sum(shard.tokens for shard in manifest.shards)
    assert found["index_bytes"] == 40 * 64 * 4
    assert found["bytes_per_passage"] == 64 * 4
    assert (found["index_passages"], found["index_tokens"]) == (40, tokens)
    assert found["index_operations"] == 2 * found["parameters"] * tokens
    assert found["index_seconds"] == manifest.timings["seconds"]
    assert found["padding_share"] == manifest.timings["padding_share"]
    assert found["query_encoding_ms"] == pytest.approx(1000 * searched.encoding_seconds / 10)
    assert found["queries_per_second"] > 0
    assert found["peak_memory_bytes"] > 50_000_000
    assert found["device"] == "cpu"


def test_every_figure_is_a_finite_number_or_left_out(searched):
    def numbers(value):
        if isinstance(value, dict):
            return [n for inner in value.values() for n in numbers(inner)]
        if isinstance(value, list):
            return [n for inner in value for n in numbers(inner)]
        assert value is not None
        return [value] if isinstance(value, int | float) else []

    assert all(math.isfinite(number) for number in numbers(table(searched.encoder.card, searched)))


def test_the_weights_are_those_outside_of_the_embedding_table(searched):
    model = searched.encoder.model
    expected = sum(p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name)
    assert searched.weights == expected > 0


def test_a_backbone_from_scratch_is_a_stage_but_not_part_of_the_training_in_total(searched):
    card = searched.encoder.card
    (tuning,) = card.lineage.stages
    scratch = Stage("pretraining", {"processes": 2}, seconds=7200.0, examples=1)
    found = table(
        dataclasses.replace(card, lineage=dataclasses.replace(card.lineage, stages=(scratch, tuning))), searched
    )
    assert [stage["stage"] for stage in found["training"]] == ["pretraining", "contrastive"]
    assert (found["training_seconds"], found["training_process_hours"]) == (3.5, 3.5 / 3600)


def test_hours_count_every_process(searched):
    found = training(contrastive(), 1000)
    assert (found["processes"], found["process_hours"], found["examples"]) == (8, 8.0, 100)
    assert found["batch_size"] == contrastive().settings["schedule"]["batch_size"]


def test_the_tokens_of_tuning_are_those_of_a_query_and_its_passages():
    assert tokens_at_most(contrastive(passages_per_query=16)) == 100 * (64 + 16 * 200)


def test_the_tokens_of_other_stages_are_those_of_their_texts_or_what_they_say():
    ql = Stage("ql", {"query_length": 200, "passage_length": 200}, examples=10)
    assert tokens_at_most(ql) == 10 * 400
    assert tokens_at_most(Stage("mntp", {"passage_length": 512}, examples=10)) == 5120
    assert tokens_at_most(Stage("simcse", {"passage_length": 128}, examples=10)) == 2560
    assert tokens_at_most(Stage("pretraining", {"tokens": 6000}, examples=3)) == 6000
    assert tokens_at_most(Stage("contrastive", {"lora": {"rank": 8}}, examples=3)) is None


@pytest.mark.parametrize(
    ("tune", "checkpointing", "expected"),
    [("full", False, 6), ("full", True, 8), ("lora", False, 4), ("lora", True, 6)],
)
def test_the_operations_depend_on_what_is_tuned_and_on_checkpointing(tune, checkpointing, expected):
    settings = {"tune": tune, "schedule": {"gradient_checkpointing": checkpointing}}
    assert operations_per_weight(Stage("ql", settings)) == expected
    found = training(Stage("ql", {**settings, "passage_length": 10}, examples=2), 1000)
    assert found["operations_at_most"] == expected * 1000 * 20


def test_a_stage_that_says_little_leaves_figures_out():
    found = training(Stage("contrastive", {"lora": {"rank": 8}}, seconds=3.5, examples=20), 1000)
    assert found == {
        "stage": "contrastive",
        "seconds": 3.5,
        "processes": 1,
        "process_hours": 3.5 / 3600,
        "examples": 20,
    }
