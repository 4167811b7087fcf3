"""What the training processes of the tests do: `work(job)` in a module, as `launching.launch` wants it."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoTokenizer

from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.methods import Lora, Method, Schedule, method
from llm_retriever.training.train import TrainingRun, train
from llm_retriever.training.weights import attach_lora, load_backbone, save_model

LORA = Lora(rank=4, alpha=8, dropout=0.1, targets=("q_proj", "k_proj", "v_proj", "down_proj"))
SCHEDULE = Schedule(
    epochs=2, batch_size=8, micro_batch_size=2, learning_rate=1e-3, warmup=0.1, max_steps=6, gradient_checkpointing=True
)
KILLED_AT = 4


def short_method() -> Method:
    """LLM-QL with lengths and groups that suit the tests' passages."""
    row = method("llm-ql")
    tuning = dataclasses.replace(row.tuning, passages_per_query=3, temperature=0.05, lora=LORA, schedule=SCHEDULE)
    return dataclasses.replace(row, query_length=110, passage_length=130, tuning=tuning)


class Killed:
    """A loss that kills its process (SIGKILL, nothing is tidied up) at the n-th update."""

    def __init__(self, loss: ContrastiveLoss, at: int) -> None:
        self.loss, self.calls, self.at = loss, 0, at * SCHEDULE.batch_size // SCHEDULE.micro_batch_size

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.calls += dist.get_world_size() if dist.is_initialized() else 1
        if self.calls > self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.loss(model, batch)


def work(job: dict[str, Any]) -> None:
    """Does one thing after the other: `refuse`, `fail`, `whole`, `killed`, `resumed`."""
    for act in job["acts"]:
        if act == "refuse":
            raise InputError("the text is empty", file="corpus.jsonl", line=17, field="text", hint="give it a text")
        if act == "fail":
            raise ArithmeticError("no such luck")
        tune_once(act, job)


def tune_once(act: str, job: dict[str, Any]) -> None:
    """A small contrastive tuning; the trained model's own vectors are saved beside the saved model."""
    row, backbone, output = short_method(), Path(job["backbone"]), Path(job["output"])
    checkpoints = None if act == "whole" else Path(job["checkpoints"])
    run = TrainingRun(
        title=act, deepspeed=job["deepspeed"], checkpoints=checkpoints, checkpoint_minutes=job.get("minutes", 1e-6)
    )
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    collate = GroupCollator(row, tokenizer, Collection.open(job["collection"]).lookup())
    dataset = ContrastiveDataset(Path(job["training_set"]), row.tuning.passages_per_query, run.seed)
    model = load_backbone(backbone, run, tune=job.get("tune", "lora"), head=False)
    if job.get("tune", "lora") == "lora":
        model = attach_lora(model, row.tuning.lora, run.seed)
    loss: Any = ContrastiveLoss(row)
    log = train(model, dataset, collate, Killed(loss, KILLED_AT) if act == "killed" else loss, row.tuning.schedule, run)
    batch = collate([dataset[item] for item in range(4)])
    model.eval()
    with torch.no_grad():
        vectors = loss.encode(model, batch["query_ids"], batch["query_mask"])
    if int(os.environ.get("RANK", "0")) == 0:
        (output / act).mkdir(parents=True)
        save_file({"vectors": vectors.contiguous()}, output / act / "vectors.safetensors")
        log.save(output / act / "log.json")
    save_model(model, tokenizer, base=backbone, merged=output / act / "model", adapter=output / act / "adapter")
