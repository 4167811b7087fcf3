"""Two processes train like one: the same loss and the same gradient over gloo."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_retriever.adaptation.query_likelihood import Pair, PairCollator, QueryLikelihoodLoss
from llm_retriever.data.collection import Passage
from llm_retriever.methods import QUERY_LIKELIHOOD

PASSAGES = {"a": Passage("a", "River", "is old"), "b": Passage("b", "", "The engine was built by hand near the coast")}
PAIRS = [
    Pair("river", "a", "0"),
    Pair("which engine was built by hand near the coast in the north", "b", "1"),
    Pair("who built it", "b", "2"),
    Pair("is it old or is it not so old after all", "a", "3"),
]


def loss_and_gradient(backbone: Path, pairs: list[Pair], *, distributed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32)
    recipe = replace(QUERY_LIKELIHOOD["default"], passage_length=90)
    batch = PairCollator(recipe, ("eos",), AutoTokenizer.from_pretrained(backbone), PASSAGES)(pairs)
    trained = DistributedDataParallel(model) if distributed else model
    value = QueryLikelihoodLoss(attention_block=True)(trained, batch)
    value.backward()
    return value.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def one_of_two(rank: int, backbone: Path, directory: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{directory / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    # One short query against three longer ones: means of means would differ.
    own = PAIRS[:1] + PAIRS[2:3] if rank == 0 else PAIRS[1:2] + PAIRS[3:]
    value, gradient = loss_and_gradient(backbone, own, distributed=True)
    dist.all_reduce(value)
    torch.save((value / 2, gradient), directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradient_of_one(backbone_directory: Path, tmp_path: Path):
    expected, gradient = loss_and_gradient(backbone_directory, PAIRS, distributed=False)
    mp.spawn(one_of_two, (backbone_directory, tmp_path), nprocs=2)
    for rank in (0, 1):
        value, own = torch.load(tmp_path / f"rank{rank}.pt")
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(own, gradient, atol=1e-5, rtol=0)
