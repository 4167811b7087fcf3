"""The contrastive loss: Eq. 12 with τ, by hand, over one process and over two."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn import functional

from llm_retriever.contrastive.loss import ROWS_AT_ONCE_ON_CPU, ContrastiveLoss, contrastive_loss, gathered
from llm_retriever.methods import method
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
    assert gathered(rows) is rows


def test_padding_on_the_right_without_a_mask_gives_the_vectors_of_left_padding_with_one(tmp_path: Path):
    from transformers import AutoModel

    from llm_retriever.batches import padded, read_out

    model = AutoModel.from_pretrained(write_backbone(tmp_path)).eval()
    rows = [[1, 5, 9, 2], [1, 7, 8, 30, 31, 32, 33, 2], [1, 2]]
    right, left = padded(rows, 2, "right"), padded(rows, 2, "left")
    with torch.no_grad():
        ours = ContrastiveLoss(method("llm-ql")).encode(model, right["input_ids"], right["attention_mask"])
        theirs = read_out(model(**left).last_hidden_state, left["attention_mask"], normalise=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_rows_that_go_through_the_model_a_few_at_a_time_keep_their_vectors_and_gradients(tmp_path: Path):
    from transformers import AutoModel

    from llm_retriever.batches import padded

    model = AutoModel.from_pretrained(write_backbone(tmp_path)).eval()
    draw = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(4, 300, (int(n),), generator=draw).tolist() for n in torch.randint(2, 40, (37,), generator=draw)
    ]
    batch, loss = padded(rows, 2, "right"), ContrastiveLoss(method("llm-ql"))
    assert len(rows) > 2 * ROWS_AT_ONCE_ON_CPU
    found = []
    for encode in (loss.encode, loss._vectors):
        model.zero_grad()
        vectors = encode(model, batch["input_ids"], batch["attention_mask"], None)
        (vectors * torch.arange(len(rows))[:, None]).sum().backward()
        found.append((vectors.detach(), model.layers[0].mlp.up_proj.weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


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
    drawn = torch.randint(50, (2, queries * (1 + GROUP), 4), generator=torch.Generator().manual_seed(5))
    whole = drawn[:, : 2 * queries * (1 + GROUP)]
    ids = whole[rank] if rank >= 0 else torch.cat([part[:queries] for part in whole])
    passages = whole[rank][queries:] if rank >= 0 else torch.cat([part[queries:] for part in whole])
    ids = ids[:queries] if rank >= 0 else ids
    return {
        "query_ids": ids,
        "query_mask": torch.ones_like(ids),
        "passage_ids": passages,
        "passage_mask": torch.ones_like(passages),
    }


def one_of_two(rank: int, directory: str) -> None:
    """Runs in a process of its own: its half of the batch, through data parallelism."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(encoder())
    loss = ContrastiveLoss(method("llm-ql"))(model, batch(rank, 3))
    loss.backward()
    gradients = {name: value.grad for name, value in model.module.named_parameters()}
    torch.save({"loss": loss.detach(), "gradients": gradients}, f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    model = encoder()
    loss = ContrastiveLoss(method("llm-ql"))(model, batch(-1, 3))
    loss.backward()
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(found["loss"], loss.detach(), atol=1e-5, rtol=1e-5)
        for name, value in model.named_parameters():
            torch.testing.assert_close(found["gradients"][name], value.grad, atol=1e-5, rtol=1e-5)
