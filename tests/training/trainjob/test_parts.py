"""A checkpoint of several nodes: each sends its part, it counts when all have, and every node gets all of it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_retriever.stores.opening import open_store
from llm_retriever.training.checkpoints import NodeCheckpoints

PARTS = {0: ["model.safetensors", "global_step/shard_0.pt"], 1: ["rng_1.pth", "global_step/shard_1.pt"]}


@pytest.fixture
def mirror(s3) -> str:
    return f"s3://{s3.bucket}/checkpoints/key"


@pytest.fixture
def nodes(tmp_path, mirror) -> list[NodeCheckpoints]:
    return [NodeCheckpoints(tmp_path / f"node-{rank}", mirror) for rank in PARTS]


def written(node: NodeCheckpoints, rank: int, update: int) -> Path:
    checkpoint = node.directory / f"checkpoint-{update}"
    for name in PARTS[rank]:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_text(f"{update} by {rank}")
    return checkpoint


def saved(nodes: list[NodeCheckpoints], update: int) -> None:
    """What the trainer does: every node its part, then the first one the mark."""
    made = [written(node, rank, update) for rank, node in enumerate(nodes)]
    sent: dict[str, int] = {}
    for node, checkpoint in zip(nodes, made, strict=True):
        sent |= node.contribute(checkpoint)
    nodes[0].complete(made[0], sent)


def test_every_node_gets_the_parts_of_all(nodes, mirror, tmp_path):
    saved(nodes, 4)
    assert nodes[0].newest() == "checkpoint-4"
    for node in (*nodes, NodeCheckpoints(tmp_path / "another", mirror)):
        found = node.restore("checkpoint-4")
        assert found == node.directory / "checkpoint-4"
        names = sorted(p.relative_to(found).as_posix() for p in found.rglob("*") if p.is_file())
        assert names == sorted(PARTS[0] + PARTS[1])
        assert (found / "global_step" / "shard_1.pt").read_text() == "4 by 1"


def test_what_not_all_have_sent_does_not_count(nodes, mirror):
    saved(nodes, 4)
    nodes[0].contribute(written(nodes[0], 0, 8))
    assert nodes[0].newest() == "checkpoint-4"
    assert nodes[1].restore("checkpoint-4").name == "checkpoint-4"
    assert not (nodes[1].directory / "checkpoint-8").exists()


def test_a_part_that_lies_on_a_nodes_disk_is_never_gone_on_from(nodes):
    written(nodes[0], 0, 8)
    assert nodes[0].newest() is None
    assert nodes[0].restore() is None


def test_a_new_one_replaces_the_older_one_and_leaves_no_room_taken_on_the_nodes(nodes, mirror):
    for update in (4, 8):
        saved(nodes, update)
    assert {entry.key.split("/")[0] for entry in open_store(mirror).list()} == {"checkpoint-8", "checkpoint-8.json"}
    assert [list(node.directory.iterdir()) for node in nodes] == [[], []]


def test_one_that_lost_a_part_in_the_store_is_not_gone_on_from(nodes, mirror):
    saved(nodes, 4)
    open_store(mirror).delete("checkpoint-4/global_step/shard_1.pt")
    assert nodes[0].newest() is None


def test_one_that_changes_while_a_node_fetches_it_ends_that_node(nodes, mirror):
    saved(nodes, 4)
    open_store(mirror).write("checkpoint-4/global_step/shard_1.pt", b"cut")
    with pytest.raises(RuntimeError, match="checkpoint-4 changed while it was fetched"):
        nodes[1].restore("checkpoint-4")


def test_what_was_interrupted_is_gone_before_the_training_goes_on(nodes, mirror):
    saved(nodes, 4)
    nodes[1].contribute(written(nodes[1], 1, 8))
    assert nodes[0].newest() == "checkpoint-4"
    assert {entry.key.split("/")[0] for entry in open_store(mirror).list()} == {"checkpoint-4", "checkpoint-4.json"}


def test_a_training_whose_part_another_one_removed_does_not_replace_the_others_checkpoint(nodes, mirror, tmp_path):
    other = [NodeCheckpoints(tmp_path / f"other-{rank}", mirror) for rank in PARTS]
    sent = nodes[0].contribute(written(nodes[0], 0, 4))
    saved(other, 8)
    sent |= nodes[1].contribute(written(nodes[1], 1, 4))
    with pytest.raises(RuntimeError, match="checkpoint-4 is not what the nodes have sent"):
        nodes[0].complete(nodes[0].directory / "checkpoint-4", sent)
    assert nodes[0].newest() == "checkpoint-8"
    assert nodes[1].restore("checkpoint-8") is not None


def test_a_file_that_no_node_has_sent_is_not_marked_as_part_of_a_checkpoint(nodes, mirror):
    sent = [node.contribute(written(node, rank, 4)) for rank, node in enumerate(nodes)]
    open_store(mirror).write("checkpoint-4/rng_2.pth", b"another's")
    with pytest.raises(RuntimeError, match="checkpoint-4 is not what the nodes have sent"):
        nodes[0].complete(nodes[0].directory / "checkpoint-4", {**sent[0], **sent[1]})
    assert nodes[0].newest() is None
