"""ZeRO on the CPU in two processes: trains, is killed, resumes, saves whole; no compiler is needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.data.collection import Collection
from llm_retriever.training.launching import launch
from llm_retriever.training.train import TrainingLog
from tests.conftest import write_backbone
from tests.training.training_jobs import KILLED_AT, short_method

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(tmp_path, collection_directory, training_set_directory, monkeypatch) -> dict:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # A compiler that is not there cannot be called: nothing may need one.
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return {
        "backbone": str(write_backbone(tmp_path / "backbone", layers=2)),
        "collection": str(collection_directory),
        "training_set": str(training_set_directory),
        "checkpoints": str(tmp_path / "checkpoints"),
        "output": str(tmp_path / "output"),
    }


def query_vectors(model: Path, job: dict) -> torch.Tensor:
    row = short_method()
    collate = GroupCollator(row, AutoTokenizer.from_pretrained(model), Collection.open(job["collection"]).lookup())
    dataset = ContrastiveDataset(Path(job["training_set"]), 3, 17)
    batch = collate([dataset[item] for item in range(4)])
    with torch.no_grad():
        loaded = AutoModel.from_pretrained(model).eval()
        return ContrastiveLoss(row).encode(loaded, batch["query_ids"], batch["query_mask"])


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_a_sharded_training_is_killed_resumes_and_saves_what_it_trained(stage, job, tmp_path):
    output, job = tmp_path / "output", {**job, "deepspeed": stage}
    with pytest.raises(RuntimeError, match="a training process failed"):
        launch(
            "tests.training.training_jobs", {**job, "acts": ["whole", "killed"]}, tmp_path, processes=2, deepspeed=stage
        )
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*.json"))
    assert kept == [f"checkpoint-{KILLED_AT}.json"]
    launch("tests.training.training_jobs", {**job, "acts": ["resumed"]}, tmp_path, processes=2, deepspeed=stage)
    for act in ("whole", "resumed"):
        trained = load_file(output / act / "vectors.safetensors")["vectors"]
        torch.testing.assert_close(query_vectors(output / act / "model", job), trained, atol=1e-5, rtol=0)
    whole, resumed = (load_file(output / act / "adapter" / "adapter_model.safetensors") for act in ("whole", "resumed"))
    assert whole.keys() == resumed.keys()
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=1e-6, rtol=0)
    losses = [
        [entry["loss"] for entry in TrainingLog.load(output / act / "log.json").steps] for act in ("whole", "resumed")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(losses[1]) == 6
    assert not (tmp_path / "extensions").exists()


@pytest.mark.slow
def test_one_process_trains_all_weights_under_zero1(job, tmp_path):
    job |= {"deepspeed": "zero1", "tune": "full", "acts": ["whole"]}
    launch("tests.training.training_jobs", job, tmp_path, processes=1, deepspeed="zero1")
    trained = load_file(tmp_path / "output" / "whole" / "vectors.safetensors")["vectors"]
    saved = query_vectors(tmp_path / "output" / "whole" / "model", job)
    torch.testing.assert_close(saved, trained, atol=1e-5, rtol=0)
    assert not torch.allclose(saved, query_vectors(Path(job["backbone"]), job), atol=1e-3)
