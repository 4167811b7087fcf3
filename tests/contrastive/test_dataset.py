"""Which passages a query is trained with, and how they are worded."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import EXAMPLES_FILE
from llm_retriever.methods import method


def written(directory: Path, positives: int, negatives: int, lines: int = 4) -> Path:
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"query {i}",
            "positives": [{"id": f"p{i}.{j}"} for j in range(positives)],
            "negatives": [{"id": f"n{i}.{j}", "source": "bm25", "rank": j, "score": 1.0} for j in range(negatives)],
        }
        for i in range(lines)
    ]
    (directory / EXAMPLES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def groups(dataset: ContrastiveDataset, epoch: int) -> list[tuple[str, ...]]:
    dataset.set_epoch(epoch)
    return [dataset[item].passages for item in range(len(dataset))]


def test_the_positive_rotates_with_item_seed_and_epoch(tmp_path):
    dataset = ContrastiveDataset(written(tmp_path, positives=3, negatives=9), passages=4, seed=5)
    assert [passages[0] for passages in groups(dataset, 0)] == [f"p{i}.{(i + 5) % 3}" for i in range(4)]
    assert [passages[0] for passages in groups(dataset, 2)] == [f"p{i}.{(i + 5 + 2) % 3}" for i in range(4)]


def test_epochs_walk_through_all_negatives_before_one_comes_again(tmp_path):
    dataset = ContrastiveDataset(written(tmp_path, positives=1, negatives=9), passages=4, seed=5)
    seen = [passage for epoch in range(3) for passage in groups(dataset, epoch)[2][1:]]
    assert sorted(seen) == [f"n2.{j}" for j in range(9)]
    assert groups(dataset, 3) == groups(dataset, 0)


def test_the_same_seed_draws_the_same_and_another_seed_does_not(tmp_path):
    written(tmp_path, positives=1, negatives=9)
    first, again, other = (groups(ContrastiveDataset(tmp_path, 4, seed), 1) for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_too_few_negatives_are_drawn_with_replacement(tmp_path):
    dataset = ContrastiveDataset(written(tmp_path, positives=1, negatives=2), passages=8, seed=5)
    for item, passages in enumerate(groups(dataset, 0)):
        assert len(passages) == 8
        assert set(passages[1:]) <= {f"n{item}.0", f"n{item}.1"}


def test_a_query_without_negatives_borrows_the_positives_of_others(tmp_path):
    dataset = ContrastiveDataset(written(tmp_path, positives=1, negatives=0), passages=4, seed=5)
    for item, passages in enumerate(groups(dataset, 0)):
        assert passages[0] == f"p{item}.0"
        assert len(passages) == 4
        assert passages[0] not in passages[1:]


def test_one_passage_a_query_means_in_batch_negatives_alone(tmp_path):
    dataset = ContrastiveDataset(written(tmp_path, positives=1, negatives=9), passages=1, seed=5)
    assert groups(dataset, 1) == [(f"p{i}.0",) for i in range(4)]


def test_a_dataset_can_be_sent_to_another_process(tmp_path):
    dataset = ContrastiveDataset(written(tmp_path, positives=2, negatives=9), passages=4, seed=5)
    dataset.set_epoch(3)
    assert pickle.loads(pickle.dumps(dataset))[1] == dataset[1]


@pytest.fixture
def collate(backbone_directory, collection_directory):
    row = replace(method("llm-ql"), query_length=120, passage_length=150)
    tokenizer = AutoTokenizer.from_pretrained(backbone_directory)
    return GroupCollator(row, tokenizer, Collection.open(collection_directory).lookup())


def test_a_batch_has_the_queries_and_all_their_passages_in_order(collate, training_set_directory, collection_directory):
    dataset = ContrastiveDataset(training_set_directory, passages=4, seed=5)
    batch = collate([dataset[0], dataset[1]])
    assert batch["query_ids"].shape[0] == 2
    assert batch["passage_ids"].shape[0] == 8
    lookup = Collection.open(collection_directory).lookup()
    for row, passage_id in enumerate([*dataset[0].passages, *dataset[1].passages]):
        passage = lookup[passage_id]
        expected = collate.passages.ids(f"{passage.title} {passage.text}")
        found = batch["passage_ids"][row][batch["passage_mask"][row].bool()].tolist()
        assert found == expected


def test_every_row_ends_in_the_embedding_token(collate, training_set_directory):
    dataset = ContrastiveDataset(training_set_directory, passages=4, seed=5)
    batch = collate([dataset[item] for item in range(6)])
    for kind in ("query", "passage"):
        for ids, mask in zip(batch[f"{kind}_ids"], batch[f"{kind}_mask"], strict=True):
            assert ids[mask.sum() - 1] == collate.passages.tokenizer.eos_token_id
            assert (ids[mask.sum() :] == collate.pad).all()
