"""Stage one under ZeRO on the CPU in two processes: trains, is stopped by SIGTERM, resumes, saves whole."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation import adapt as adaptation
from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.errors import InputError
from llm_retriever.settings import AdaptationSettings, build
from llm_retriever.training.launching import LAUNCHER, STOP_FILE, launch
from llm_retriever.training.train import TrainingLog, TrainingRun, train
from llm_retriever.training.vocabulary import added_tokens, extended, new_token_ids
from llm_retriever.training.weights import attach_lora, load_backbone, save_model
from tests.conftest import write_backbone

ROOT = Path(__file__).parent.parent.parent
STOPPED_AT = 2
SHORT = {
    "passage_length": 130,
    "batch_size": 8,
    "micro_batch_size": 2,
    "max_steps": 4,
    "learning_rate": 2e-3,
    "precision": "fp32",
    "processes": 2,
}
CASES = {
    "ql-full-zero2": {"method": "ql", "deepspeed": "zero2"},
    "ql-full-zero3": {"method": "ql", "deepspeed": "zero3"},
    "ql-lora-zero2": {"method": "ql", "deepspeed": "zero2", "tune": "lora", "embedding": "new4"},
    "ql-lora-zero3": {"method": "ql", "deepspeed": "zero3", "tune": "lora"},
    "ebae_ebar-full-zero2": {"method": "ebae_ebar", "deepspeed": "zero2"},
    "ebae_ebar-full-zero3": {"method": "ebae_ebar", "deepspeed": "zero3"},
}


class Preempted:
    """A loss in whose n-th update the step is sent SIGTERM, as a cluster does before it takes a machine away."""

    def __init__(self, loss: Any, calls: int) -> None:
        self.loss, self.left = loss, calls

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.left -= 1
        if self.left == 0 and os.environ["RANK"] == "0":
            os.kill(int(os.environ[LAUNCHER]), signal.SIGTERM)
            while not Path(os.environ[STOP_FILE]).exists():
                time.sleep(0.01)
        return self.loss(model, batch)


def work(job: dict[str, Any]) -> None:
    """A training process: one adaptation after the other (`whole`, `stopped`, `resumed`)."""
    for act in job["acts"]:
        adapt_once(act, job)


def adapt_once(act: str, job: dict[str, Any]) -> None:
    """What a process of the step does; what the trained model computes is saved beside the saved model."""
    settings = build(AdaptationSettings, job["settings"])
    recipe, row = adaptation.resolved_recipe(settings), adaptation.resolved_method(settings)
    base, output = Path(job["base"]), Path(job["output"]) / act
    checkpoints = None if act == "whole" else Path(job["checkpoints"])
    run = TrainingRun(title=act, deepspeed=settings.deepspeed, checkpoints=checkpoints, checkpoint_minutes=60)
    tokenizer = AutoTokenizer.from_pretrained(base)
    task = Task(recipe, row, tokenizer, Path(job["collection"]), Path(job["training_set"]), run.seed)
    found = adaptation.objective(task)
    model = load_backbone(base, run, tune=recipe.tune, head=found.head, attention=row.attention)
    if recipe.tune == "lora":
        model = attach_lora(model, recipe.lora, run.seed, trained_tokens=new_token_ids(tokenizer, row))
    found.prepare(model)
    calls = (STOPPED_AT - 1) * 2 + 1
    loss = Preempted(found.loss, calls) if act == "stopped" else found.loss
    log = train(model, found.dataset, found.collate, loss, recipe.schedule, run)
    computed = outputs(model, found)
    if os.environ["RANK"] == "0":
        output.mkdir(parents=True)
        save_file(computed, output / "computed.safetensors")
        log.save(output / "log.json")
    save_model(model, tokenizer, base=base, merged=output / "model", adapter=output / "adapter")


def outputs(model: Any, found: Objective) -> dict[str, torch.Tensor]:
    """Hidden states and logits of a causal LM on the real tokens of a few examples."""
    batch = found.collate([found.dataset[item] for item in range(4)])
    real = batch["attention_mask"].bool()
    model.eval()
    with torch.no_grad():
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        made = model(**given, output_hidden_states=True, use_cache=False)
    return {"hidden": made.hidden_states[-1][real].contiguous(), "logits": made.logits[real].contiguous()}


@pytest.fixture
def job(tmp_path: Path, collection_directory: Path, training_set_directory: Path, monkeypatch) -> dict[str, Any]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return {
        "collection": str(collection_directory),
        "training_set": str(training_set_directory),
        "checkpoints": str(tmp_path / "checkpoints"),
        "output": str(tmp_path / "output"),
    }


def launched(job: dict[str, Any], *acts: str) -> None:
    stage, scratch = job["settings"]["deepspeed"], Path(job["output"]).parent
    launch("tests.adaptation.test_zero", {**job, "acts": acts}, scratch, processes=2, deepspeed=stage)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_sharded_adaptation_is_stopped_resumes_and_saves_what_it_trained(case: str, job: dict, tmp_path: Path):
    output, settings = tmp_path / "output", {**SHORT, **CASES[case]}
    row = adaptation.resolved_method(build(AdaptationSettings, settings))
    backbone = write_backbone(tmp_path / "backbone", layers=2)
    with extended(backbone, added_tokens(row, backbone)) as base:
        job |= {"settings": settings, "base": str(base)}
        with pytest.raises(SystemExit) as ended:
            launched(job, "whole", "stopped")
        assert ended.value.code == 143
        kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*.json"))
        assert kept == [f"checkpoint-{STOPPED_AT}.json"]
        launched(job, "resumed")
        computes_what_was_trained(job, output / "whole")
        computes_what_was_trained(job, output / "resumed")
        new_tokens_were_trained(base, output / "resumed" / "model", row)
    resumed_as_if_nothing_had_happened(output)


@pytest.mark.slow
def test_new_tokens_under_lora_and_zero3_are_refused(job: dict, tmp_path: Path):
    settings = {**SHORT, "method": "ql", "deepspeed": "zero3", "tune": "lora", "embedding": "new4"}
    row = adaptation.resolved_method(build(AdaptationSettings, settings))
    backbone = write_backbone(tmp_path / "backbone", layers=2)
    with extended(backbone, added_tokens(row, backbone)) as base, pytest.raises(InputError, match="use zero2"):
        launched({**job, "settings": settings, "base": str(base)}, "whole")


def computes_what_was_trained(job: dict[str, Any], made: Path) -> None:
    """The saved model, head included, computes what the sharded one did; an adapter has no zero matrix."""
    settings = build(AdaptationSettings, job["settings"])
    recipe, row = adaptation.resolved_recipe(settings), adaptation.resolved_method(settings)
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    task = Task(recipe, row, tokenizer, Path(job["collection"]), Path(job["training_set"]), 17)
    loaded, notes = AutoModelForCausalLM.from_pretrained(made / "model", output_loading_info=True)
    assert not notes["missing_keys"]
    computed = load_file(made / "computed.safetensors")
    saved = outputs(loaded, adaptation.objective(task))
    for name, expected in computed.items():
        torch.testing.assert_close(saved[name], expected, atol=1e-5, rtol=0)
    if recipe.tune == "lora":
        adapter = load_file(made / "adapter" / "adapter_model.safetensors")
        assert all(value.any() for name, value in adapter.items() if "lora_B" in name)


def new_tokens_were_trained(base: Path, made: Path, row: Any) -> None:
    """Every new token's embedding has left the mean, where all of them began."""
    ids = new_token_ids(AutoTokenizer.from_pretrained(made), row)
    before, after = (
        AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight[ids] for path in (base, made)
    )
    assert (after - before).abs().gt(1e-4).any(dim=1).all()


def resumed_as_if_nothing_had_happened(output: Path) -> None:
    """Losses, weights and what the model computes are those of the training that was not stopped."""
    whole, resumed = (TrainingLog.load(output / act / "log.json").steps for act in ("whole", "resumed"))
    assert [entry["loss"] for entry in resumed] == pytest.approx([entry["loss"] for entry in whole], abs=1e-6)
    assert len(resumed) == SHORT["max_steps"]
    expected, found = (load_file(output / act / "computed.safetensors") for act in ("whole", "resumed"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    expected, found = (load_file(output / act / "model" / "model.safetensors") for act in ("whole", "resumed"))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
