"""The contrastive loss: Eq. 12 with τ, by hand, over one process and over two."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn import functional
from transformers import AutoModel

from llm_retriever.contrastive.loss import (
    ContrastiveLoss,
    all_gather_with_grad,
    contrastive_loss,
    distillation_loss,
    mask_false_negatives,
)
from llm_retriever.methods import method
from llm_retriever.models.batches import padded
from tests.conftest import write_backbone

GROUP, DIMENSION = 3, 5


def vectors(rows: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, DIMENSION, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=-1).requires_grad_()


def by_hand(queries: torch.Tensor, passages: torch.Tensor, temperature: float) -> torch.Tensor:
    queries, passages = queries.double(), passages.double()
    total = torch.zeros((), dtype=torch.double)
    for i, query in enumerate(queries):
        terms = [math.e ** ((query @ passage) / temperature) for passage in passages]
        total = total - torch.log(terms[i * GROUP] / sum(terms))
    return (total / len(queries)).float()


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02])
def test_the_loss_and_its_gradients_are_those_of_the_equation(temperature):
    queries, passages = vectors(4, 0), vectors(4 * GROUP, 1)
    loss = contrastive_loss(queries, passages, temperature)
    expected = by_hand(queries, passages, temperature)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad(loss, [queries, passages])
    theirs = torch.autograd.grad(expected, [queries, passages])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_temperature_divides_the_scores():
    queries, passages = vectors(4, 0), vectors(4 * GROUP, 1)
    torch.testing.assert_close(contrastive_loss(queries, passages, 0.05), contrastive_loss(20 * queries, passages, 1.0))


def test_one_process_gathers_nothing():
    rows = vectors(2, 0)
    assert all_gather_with_grad(rows) is rows


def test_padding_on_the_right_without_a_mask_gives_the_vectors_of_left_padding_with_one(tmp_path: Path):
    from llm_retriever.models.pooling import pool

    model = AutoModel.from_pretrained(write_backbone(tmp_path)).eval()
    rows = [[1, 5, 9, 2], [1, 7, 8, 30, 31, 32, 33, 2], [1, 2]]
    right, left = padded(rows, 2, "right"), padded(rows, 2, "left")
    with torch.no_grad():
        ours = ContrastiveLoss(method("llm-ql")).encode(model, right["input_ids"], right["attention_mask"])
        theirs = pool(model(**left).last_hidden_state, left["attention_mask"], normalise=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


class Encoder(nn.Module):
    """The smallest thing that has `last_hidden_state`: one vector a token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.out = nn.Linear(8, DIMENSION)

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=self.out(self.embedding(input_ids)))


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder()


def batch(rank: int, queries: int) -> dict[str, torch.Tensor]:
    """The share of a rank, or of both ranks for -1; passages of few ids, so that positives come again in the pool."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(50, (2, queries * (1 + GROUP), 4), generator=draw)
    passages = torch.randint(6, (2, queries * GROUP), generator=draw)
    positives = torch.stack([passages[:, ::GROUP], torch.randint(-1, 6, (2, queries), generator=draw)], dim=-1)
    made = {
        "query_ids": ids[:, :queries],
        "passage_ids": ids[:, queries:],
        "passage_numbers": passages,
        "positive_numbers": positives,
        "teacher": torch.randn(2, queries, GROUP, generator=draw),
    }
    made |= {f"{side}_mask": torch.ones_like(made[f"{side}_ids"]) for side in ("query", "passage")}
    return {name: value.flatten(0, 1) if rank < 0 else value[rank] for name, value in made.items()}


def unequal(rank: int, prefix: int = 0) -> dict[str, torch.Tensor]:
    """Rows of 3 to 9 tokens for one process, of up to 150 for the other: fewer and more passes; both shares for -1.

    All passages, and the queries of the first process, begin with as many tokens as the prefix has.
    """
    draw, found = random.Random(2), []
    for longest in (9, 150):
        rows = [[draw.randrange(4, 300) for _ in range(draw.randrange(3, longest))] for _ in range(24)]
        begun = [[*range(10, 10 + prefix), *row] for row in rows]
        found.append({"query": rows[:6] if found else begun[:6], "passage": begun[6:]})
    shares = found if rank < 0 else [found[rank]]
    made = {}
    for side in ("query", "passage"):
        rows = padded([row for share in shares for row in share[side]], 2, "right")
        made |= {f"{side}_ids": rows["input_ids"], f"{side}_mask": rows["attention_mask"]}
    return made


def loss_of(masked: bool = False, weight: float = 0.0, prefixes: str = "") -> ContrastiveLoss:
    row = method("llm-ql")
    changed = {"temperature": 0.1, "mask_positives": masked, "distillation_weight": weight}
    changed["matryoshka_dimensions"] = prefixes
    return ContrastiveLoss(replace(row, tuning=replace(row.tuning, distillation_temperature=2.0, **changed)))


WAYS = {
    "plain": loss_of(),
    "masked": loss_of(masked=True),
    "distilled": loss_of(masked=True, weight=0.7),
    "prefixes": loss_of(masked=True, weight=0.7, prefixes="2,3"),
}


def one_of_two(rank: int, backbone: str, directory: str) -> None:
    """Runs in a process of its own: its half of each batch, through data parallelism."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    found, passes = {}, []
    for name, loss in WAYS.items():
        found[name] = trained_once(nn.parallel.DistributedDataParallel(encoder()), loss, batch(rank, 3))
    llama = AutoModel.from_pretrained(backbone)
    found["begun alike"] = trained_once(nn.parallel.DistributedDataParallel(llama), loss_of(), unequal(rank, 20))
    llama = AutoModel.from_pretrained(backbone)
    llama.register_forward_pre_hook(lambda *_: passes.append(1))
    for _ in range(2):  # The second backward pass finds the buckets of the first one.
        passes.clear()
        found["unequal"] = trained_once(nn.parallel.DistributedDataParallel(llama), loss_of(), unequal(rank))
    torch.save((found, len(passes)), f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


def trained_once(
    model: nn.Module, loss: ContrastiveLoss, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and the gradient of all parameters in one row."""
    model.zero_grad()
    value = loss(model, batch)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path):
    backbone = str(write_backbone(tmp_path / "backbone"))
    torch.multiprocessing.spawn(one_of_two, (backbone, str(tmp_path)), nprocs=2)
    expected = {name: trained_once(encoder(), loss, batch(-1, 3)) for name, loss in WAYS.items()}
    for name, prefix in (("unequal", 0), ("begun alike", 20)):
        expected[name] = trained_once(AutoModel.from_pretrained(backbone), loss_of(), unequal(-1, prefix))
    assert len({round(value.item(), 4) for value, _ in expected.values()}) == 6
    calls = set()
    for rank in (0, 1):
        found, passes = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        calls.add(passes)
    assert calls == {passes}
    assert passes > 1


def test_positives_are_left_out_wherever_they_come_again():
    passages = torch.tensor([1, 2, 3, 4, 1, 5])
    positives = torch.tensor([[1, 5], [4, -1]])
    false_negative_mask = mask_false_negatives(passages, positives)
    assert false_negative_mask.tolist() == [[False, False, False, False, True, True], [False] * 6]


def test_the_masked_loss_is_that_of_the_pool_without_the_copies():
    queries, passages = vectors(2, 0), vectors(6, 1)
    false_negative_mask = torch.zeros(2, 6, dtype=torch.bool)
    false_negative_mask[0, 4] = True
    kept = [[0, 1, 2, 3, 5], list(range(6))]
    losses = [
        -torch.log_softmax(queries[i] @ passages[rows].T / 0.1, dim=-1)[rows.index(3 * i)]
        for i, rows in enumerate(kept)
    ]
    found = contrastive_loss(queries, passages, 0.1, false_negative_mask)
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(found, [queries])
    assert torch.isfinite(gradient).all()


def test_prefixes_are_trained_like_whole_vectors_of_so_many_numbers():
    """The mean of the losses of three encoders, of which two have fewer numbers and the same weights otherwise."""
    model, parts = encoder(), []
    found = loss_of(prefixes="3, 2,3")(model, batch(-1, 3))
    found.backward()
    for numbers in (DIMENSION, 3, 2):
        part = encoder()
        part.out.weight.data, part.out.bias.data = part.out.weight.data[:numbers], part.out.bias.data[:numbers]
        value, _ = trained_once(part, loss_of(), batch(-1, 3))
        rows = torch.zeros(DIMENSION, 8)
        rows[:numbers] = part.out.weight.grad
        parts.append((value, rows))
    torch.testing.assert_close(found, torch.stack([value for value, _ in parts]).mean())
    torch.testing.assert_close(model.out.weight.grad, torch.stack([rows for _, rows in parts]).mean(dim=0))


def test_distillation_is_the_divergence_of_each_querys_own_passages():
    queries, passages = vectors(2, 0), vectors(6, 1)
    teacher = torch.tensor([[3.0, 1.0, -2.0], [0.5, 0.5, 4.0]])
    by_hand = 0.0
    for i in range(2):
        student = torch.softmax(queries[i] @ passages[3 * i : 3 * i + 3].T / 0.1, dim=-1)
        wanted = torch.softmax(teacher[i], dim=-1)
        by_hand = by_hand + (wanted * (wanted.log() - student.log())).sum() / 2
    torch.testing.assert_close(distillation_loss(queries, passages, 0.1, teacher), by_hand, atol=1e-6, rtol=1e-5)


def test_a_student_that_scores_like_its_teacher_has_nothing_to_learn_from_it():
    queries, passages = vectors(2, 0), vectors(6, 1)
    teacher = torch.einsum("bd,bgd->bg", queries, passages.view(2, 3, -1)).detach() / 0.1
    assert distillation_loss(queries, passages, 0.1, teacher).abs() < 1e-6
