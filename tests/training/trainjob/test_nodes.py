"""Two nodes of one process each train what one pod with two processes trains; lost nodes go on from the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llm_retriever.contrastive.tuning import tune
from llm_retriever.models.card import RetrieverCard
from llm_retriever.settings import TuningSettings
from llm_retriever.stores.opening import open_store
from llm_retriever.training.train import TrainingLog
from tests.training.trainjob.machines import Machines

SMALL = {
    "passages_per_query": 2,
    "temperature": 0.05,
    "query_length": 110,
    "passage_length": 130,
    "max_steps": 4,
    "batch_size": 4,
    "micro_batch_size": 2,
    "learning_rate": 3e-3,
    "gradient_checkpointing": "off",
    "precision": "fp32",
}
ON_NODES = {"nodes": 2, "node_gpus": 1, "node_gpu_type": "", "node_image": "own", "node_memory": "4Gi"}


@pytest.fixture
def inputs(backbone_directory, collection_directory, training_set_directory) -> dict[str, Path]:
    return {
        "adapted": backbone_directory,
        "collection": collection_directory,
        "training_set": training_set_directory,
    }


def weights(retriever: Path) -> dict[str, Any]:
    return load_file(retriever / "adapter" / "adapter_model.safetensors")


def same(one: Path, other: Path) -> None:
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not expected[name].equal(found[name])] == []
    assert (one / "model" / "model.safetensors").read_bytes() == (other / "model" / "model.safetensors").read_bytes()
    losses = [[step["loss"] for step in TrainingLog.load(d / "training_log.json").steps] for d in (one, other)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_nodes_train_what_two_processes_of_one_pod_train(inputs, cluster, s3, tmp_path, capfd):
    tune(TuningSettings(**SMALL, processes=2), **inputs, retriever=tmp_path / "pod")
    Machines(cluster, tmp_path)
    store = f"s3://{s3.bucket}/checkpoints"
    tune(TuningSettings(**SMALL, **ON_NODES, checkpoint_uri=store), **inputs, retriever=tmp_path / "nodes")
    same(tmp_path / "pod", tmp_path / "nodes")
    card = RetrieverCard.load(tmp_path / "nodes")
    assert card.lineage.stages[-1].settings["processes"] == 2
    assert "tune llm-ql: 16/16 (100%) pairs" in capfd.readouterr().out
    assert {entry.key.split("/")[0] for entry in open_store(store).list()} == {"staged"}
    assert not cluster.jobs


@pytest.mark.slow
def test_nodes_that_are_lost_go_on_from_the_shards_that_each_has_sent(inputs, cluster, s3, tmp_path):
    settings = SMALL | {"deepspeed": "zero2"}
    tune(TuningSettings(**settings, processes=2), **inputs, retriever=tmp_path / "pod")
    store, kept = open_store(f"s3://{s3.bucket}/checkpoints"), []

    def lost() -> bool:
        keys = [entry.key.split("/", 1)[1] for entry in store.list() if not entry.key.startswith("staged")]
        if "checkpoint-2.json" in keys:
            kept.extend(key.removeprefix("checkpoint-2/") for key in keys)
        return bool(kept)

    Machines(cluster, tmp_path, lost=lost)
    often = TuningSettings(**settings, **ON_NODES, checkpoint_uri=store.uri, checkpoint_minutes=1e-6)
    with pytest.raises(RuntimeError, match=r"ended with exit code 137|failed"):
        tune(often, **inputs, retriever=tmp_path / "nodes")
    assert not cluster.jobs
    Machines(cluster, tmp_path)
    tune(often, **inputs, retriever=tmp_path / "nodes")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(kept)
    shards = {key.rpartition("/")[2].split("_mp_")[0] for key in kept if key.endswith("optim_states.pt")}
    assert shards >= {"zero_pp_rank_0", "zero_pp_rank_1"} or shards >= {"bf16_zero_pp_rank_0", "bf16_zero_pp_rank_1"}
    fetched = [path for method, path in s3.requests if method == "GET" and path.endswith("/rng_state_1.pth")]
    assert len(fetched) == 2
    same(tmp_path / "pod", tmp_path / "nodes")
