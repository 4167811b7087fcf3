"""Unsupervised SimCSE: two views by dropout, their loss over all processes, and no dropout in what is saved."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaModel

from llm_retriever import methods
from llm_retriever.adaptation.adapt import adapt
from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.adaptation.simcse import PassageCollator, SimcseLoss, objective, set_attention_dropout
from llm_retriever.data.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.models.attention import set_attention
from llm_retriever.models.card import load_lineage, weights_digest
from llm_retriever.models.prompts import passage_text
from llm_retriever.settings import AdaptationSettings, build

TEXTS = ["The river is old", "an engine that was built by hand near the coast", "bread", "a poem on the moon at night"]
RECIPE = methods.SIMCSE["default"]
SHORT = {
    "passage_length": 48,
    "batch_size": 16,
    "micro_batch_size": 16,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "precision": "fp32",
    "processes": 1,
}


def bidirectional(backbone: Path, **options: Any) -> Any:
    model = AutoModel.from_pretrained(backbone, dtype=torch.float32, **options)
    set_attention(model, "bidirectional")
    return model


def batch_of(backbone: Path, texts: list[str], recipe: str = "default") -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    return PassageCollator(methods.method("llm2vec", recipe), tokenizer, 64)(texts)


def objective_on(backbone: Path, collection: Path, recipe: str = "default") -> Objective:
    tokenizer, row = AutoTokenizer.from_pretrained(backbone), methods.method("llm2vec", recipe)
    return objective(Task(replace(RECIPE, passage_length=24), row, tokenizer, collection, Path("unused"), 17))


def test_the_examples_are_all_passages_with_their_titles(backbone_directory, collection_directory):
    found = objective_on(backbone_directory, collection_directory)
    passages = [passage_text(p.title, p.text) for p in Collection.open(collection_directory).passages()]
    assert [found.dataset[item] for item in range(len(found.dataset))] == passages
    assert not found.head


def test_passages_are_worded_and_cut_as_the_retriever_does(backbone_directory, collection_directory):
    found, tokenizer = (
        objective_on(backbone_directory, collection_directory),
        AutoTokenizer.from_pretrained(backbone_directory),
    )
    batch = found.collate([found.dataset[item] for item in range(4)] + ["bread"])
    rows = [ids[real.bool()].tolist() for ids, real in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert tokenizer.decode(rows[-1]) == "<s>Passage: bread"
    assert max(len(row) for row in rows) == 24
    assert "pooled" not in batch


def test_the_paper_pools_over_the_text(backbone_directory, collection_directory):
    found = objective_on(backbone_directory, collection_directory, "paper")
    batch = found.collate(["bread", "a river"])
    assert torch.equal(batch["pooled"], batch["attention_mask"].sum(dim=1) - 1), "all but the beginning of sequence"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("recipe", ["default", "paper"])
def test_two_views_differ_in_training_alone(backbone_directory, attention, recipe):
    model = bidirectional(backbone_directory, attn_implementation=attention)
    batch, loss = (
        batch_of(backbone_directory, TEXTS, recipe),
        SimcseLoss(0.05, methods.method("llm2vec", recipe).pooling),
    )
    first, second = loss.views(model.train(), batch)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    set_attention_dropout(model, 0.3)
    first, second = loss.views(model.train(), batch)
    assert ((first - second).norm(dim=1) > 1e-2).all()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(*loss.views(model.eval(), batch), atol=1e-6, rtol=0)


def test_the_configuration_does_not_learn_of_the_dropout(backbone_directory, tmp_path):
    model = bidirectional(backbone_directory)
    set_attention_dropout(model, 0.3)
    assert {layer.self_attn.attention_dropout for layer in model.layers} == {0.3}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0.0
    assert {layer.self_attn.attention_dropout for layer in AutoModel.from_pretrained(tmp_path).layers} == {0.0}


def test_a_model_without_attention_dropout_is_refused():
    with pytest.raises(InputError, match="no dropout to train SimCSE with"):
        set_attention_dropout(torch.nn.Linear(2, 2), 0.3)


def test_checkpointed_layers_drop_the_same_again_in_the_backward_pass(backbone_directory):
    batch, gradients = batch_of(backbone_directory, TEXTS), []
    for checkpointing in (False, True):
        model = bidirectional(backbone_directory).train()
        set_attention_dropout(model, 0.3)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        SimcseLoss(0.05, "last")(model, batch).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    plain, recomputed = gradients
    assert plain.norm() > 1e-3
    assert (plain - recomputed).norm() < 1e-4 * plain.norm()


def random_views(rows: int, width: int = 16) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return functional.normalize(torch.randn(2, rows, width, generator=draw), dim=-1)


def test_the_loss_is_that_of_a_plain_loop():
    first, second = random_views(5)
    losses = []
    for i in range(5):
        scores = torch.stack([functional.cosine_similarity(first[i], second[j], dim=0) / 0.05 for j in range(5)])
        losses.append(-(scores[i] - scores.exp().sum().log()))
    torch.testing.assert_close(
        SimcseLoss(0.05, "last").between(first, second), torch.stack(losses).mean(), atol=1e-5, rtol=0
    )


def test_a_batch_is_scored_by_its_two_views(backbone_directory):
    model, batch, loss = (
        bidirectional(backbone_directory),
        batch_of(backbone_directory, TEXTS),
        SimcseLoss(0.05, "last"),
    )
    set_attention_dropout(model.train(), 0.3)
    torch.manual_seed(2)
    value = loss(model, batch)
    torch.manual_seed(2)
    torch.testing.assert_close(value, loss.between(*loss.views(model, batch)))


def results(backbone: Path, part: slice, *, distributed: bool) -> list[torch.Tensor]:
    """Loss and gradient of given views, and of the model with its dropout off."""
    views = random_views(4)[:, part].clone().requires_grad_()
    between = SimcseLoss(0.05, "last").between(*views)
    between.backward()
    model = bidirectional(backbone).eval()
    trained = DistributedDataParallel(model) if distributed else model
    value = SimcseLoss(0.05, "last")(trained, batch_of(backbone, TEXTS[part]))
    value.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    return [between.detach(), views.grad, value.detach(), gradient]


def one_of_two(rank: int, backbone: Path, directory: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'rendezvous'}", rank=rank, world_size=2)
    found = results(backbone, slice(2 * rank, 2 * rank + 2), distributed=True)
    for loss in (found[0], found[2]):
        dist.all_reduce(loss)
        loss /= 2
    torch.save(found, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradient_of_one(backbone_directory, tmp_path):
    between, of_views, value, gradient = results(backbone_directory, slice(0, 4), distributed=False)
    mp.spawn(one_of_two, (backbone_directory, tmp_path), nprocs=2)
    for rank in (0, 1):
        own_between, own_views, own_value, own_gradient = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(own_between, between, atol=1e-5, rtol=0)
        # Data parallelism halves what each process contributes.
        torch.testing.assert_close(own_views / 2, of_views[:, 2 * rank : 2 * rank + 2], atol=1e-5, rtol=0)
        torch.testing.assert_close(own_value, value, atol=1e-5, rtol=0)
        torch.testing.assert_close(own_gradient, gradient, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "stages", "recipe"),
    [("simcse", ["simcse"], "paper"), ("mntp+simcse", ["mntp", "simcse"], "default")],
)
def test_an_adaptation_brings_the_views_together_and_says_so(
    backbone_directory, collection_directory, training_set_directory, tmp_path, method, stages, recipe
):
    adapted = tmp_path / "adapted"
    settings = build(AdaptationSettings, {**SHORT, "method": method, "recipe": recipe})
    log = adapt(settings, backbone_directory, collection_directory, training_set_directory, adapted)
    assert len(log.steps) == 4
    assert 0 < log.steps[-1]["loss"] < log.steps[0]["loss"]
    lineage = load_lineage(adapted)
    assert [stage.stage for stage in lineage.stages] == stages
    assert lineage.stages[-1].settings["dropout"] == 0.3
    assert weights_digest(adapted) != weights_digest(backbone_directory)
    model, loading = AutoModelForCausalLM.from_pretrained(adapted, output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.config.attention_dropout == 0.0
    assert not list(tmp_path.glob(".adapted.mntp-*")), "what lay between the stages stays"


def test_the_dropout_also_reaches_layers_under_an_adapter(backbone_directory):
    from llm_retriever.training.weights import attach_lora

    model = attach_lora(
        LlamaModel(
            LlamaConfig(num_hidden_layers=1, hidden_size=16, intermediate_size=16, num_attention_heads=2, vocab_size=8)
        ),
        replace(RECIPE.lora, rank=2),
        seed=0,
    )
    set_attention_dropout(model, 0.25)
    assert model.base_model.model.layers[0].self_attn.attention_dropout == 0.25
    assert model.config.attention_dropout == 0.0
