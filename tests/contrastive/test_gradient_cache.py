"""Gradient caching: the loss and the gradients of the whole batch, in the memory of a few rows."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel

from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.contrastive.tuning import tune
from llm_retriever.methods import Lora, method
from llm_retriever.models.batches import padded
from llm_retriever.settings import TuningSettings
from llm_retriever.training.weights import attach_lora

QUERIES, GROUP, CACHED = 4, 3, 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are fastest with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(directory: Path, *, lora: bool = False, dropout: float = 0.0, checkpointed: bool = False) -> Any:
    """A model in training mode; its LoRA adapter has no zeros, so every matrix gets a gradient."""
    model = AutoModel.from_pretrained(directory, attention_dropout=dropout)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        model = attach_lora(model, Lora(rank=4, alpha=8, dropout=dropout), seed=3)
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    return model.train()


def loss_of(gradient_cache: int, name: str = "llm-ql", recipe: str = "default", prefixes: str = "") -> ContrastiveLoss:
    row = method(name, recipe)
    changed = {"temperature": 0.05, "gradient_cache": gradient_cache, "matryoshka_dimensions": prefixes}
    return ContrastiveLoss(replace(row, tuning=replace(row.tuning, **changed)))


def batch_of(queries: int = QUERIES, pooled: bool = False) -> dict[str, Tensor]:
    """Random right-padded rows of 2 to 20 tokens; with `pooled`, vectors are means over the last two."""
    draw, batch = torch.Generator().manual_seed(1), {}
    for name, number in (("query", queries), ("passage", queries * GROUP)):
        lengths = torch.randint(2, 21, (number,), generator=draw).tolist()
        rows = padded([torch.randint(4, 300, (n,), generator=draw).tolist() for n in lengths], 0, "right")
        batch |= {f"{name}_ids": rows["input_ids"], f"{name}_mask": rows["attention_mask"]}
        if pooled:
            batch[f"{name}_pooled"] = torch.full((number,), 2)
    return batch


def trained_once(model: Any, loss: ContrastiveLoss, batch: dict[str, Tensor], seed: int = 0) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of all trained parameters in one row."""
    model.zero_grad()
    torch.manual_seed(seed)
    value = loss(model, batch)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_loss_and_gradients_are_those_of_the_whole_batch(backbone_directory, lora, checkpointed):
    model, batch = model_of(backbone_directory, lora=lora, checkpointed=checkpointed), batch_of()
    whole, whole_gradient = trained_once(model_of(backbone_directory, lora=lora), loss_of(0), batch)
    for cached in (1, CACHED, 100) if lora else (CACHED,):
        value, gradient = trained_once(model, loss_of(cached), batch)
        torch.testing.assert_close(value, whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, whole_gradient, atol=2e-5, rtol=1e-4)
    assert whole_gradient.abs().max() > 1e-2


def test_pooled_vectors_of_a_bidirectional_model_are_cached_alike(backbone_directory):
    model, batch = model_of(backbone_directory, lora=True), batch_of(pooled=True)
    model.config.is_causal = False
    whole, cached = (trained_once(model, loss_of(rows, "llm2vec", "paper"), batch) for rows in (0, CACHED))
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-4)


def test_prefixes_of_vectors_are_cached_alike(backbone_directory):
    model, batch = model_of(backbone_directory, lora=True), batch_of()
    whole, cached = (trained_once(model, loss_of(rows, prefixes="8,32"), batch) for rows in (0, CACHED))
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-4)
    assert abs(whole[0] - trained_once(model, loss_of(0), batch)[0]) > 1e-4


def test_the_temperature_applies(backbone_directory):
    model, batch = model_of(backbone_directory), batch_of()
    values = []
    for temperature in (0.05, 1.0):
        loss = loss_of(CACHED)
        loss.temperature = temperature
        values.append(trained_once(model, loss, batch)[0])
        vectors = [loss.encode(model, batch[f"{side}_ids"], batch[f"{side}_mask"]) for side in ("query", "passage")]
        scores = vectors[0] @ vectors[1].T / temperature
        by_hand = -torch.log_softmax(scores, dim=1)[torch.arange(QUERIES), torch.arange(QUERIES) * GROUP].mean()
        torch.testing.assert_close(values[-1], by_hand.detach(), atol=1e-5, rtol=1e-5)
    assert values[0] != values[1]


@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_the_second_encoding_draws_the_dropout_of_the_first(backbone_directory, checkpointed):
    """The gradient is that of the same chunks, encoded in the same order and simply kept."""
    model, batch = model_of(backbone_directory, lora=True, dropout=0.3, checkpointed=checkpointed), batch_of()
    kept = loss_of(CACHED)
    kept._chunk = kept._vectors
    expected, cached = trained_once(model, kept, batch), trained_once(model, loss_of(CACHED), batch)
    torch.testing.assert_close(cached, expected, atol=1e-6, rtol=1e-5)
    other = trained_once(model, kept, batch, seed=1)
    assert not torch.allclose(other[1], expected[1], atol=1e-3)


class LiveBytes(TorchDispatchMode):
    """The most bytes that results of operations hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(model: Any, gradient_cache: int, batch: dict[str, Tensor]) -> int:
    with LiveBytes() as live:
        trained_once(model, loss_of(gradient_cache), batch)
    return live.peak


def test_memory_is_that_of_a_few_rows(backbone_directory):
    model = model_of(backbone_directory, lora=True)
    trained_once(model, loss_of(0), batch_of())
    small, large = batch_of(3), batch_of(14)
    whole = [peak_bytes(model, 0, batch) for batch in (small, large)]
    cached = [peak_bytes(model, 3, batch) for batch in (small, large)]
    assert whole[1] > 2 * whole[0]
    assert cached[1] < 1.5 * cached[0]
    assert cached[1] < whole[1] / 5


def test_between_the_passes_only_vectors_are_kept(backbone_directory):
    model, batch = model_of(backbone_directory), batch_of()
    kept = {}
    for cached in (0, CACHED):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.nbytes) or t, lambda t: t):
            loss_of(cached)(model, batch)
        kept[cached] = sum(sizes)
    vectors = QUERIES * (1 + GROUP) * model.config.hidden_size * 4
    assert kept[CACHED] < 4 * vectors < kept[0] / 10


def test_a_cache_bounds_the_rows_of_a_pass(backbone_directory):
    model, loss, sizes = model_of(backbone_directory), loss_of(4), []
    loss(model, batch_of())  # Tries the model, with two short rows.
    model.register_forward_pre_hook(lambda _, __, named: sizes.append(len(named["input_ids"])), with_kwargs=True)
    loss(model, batch_of())
    assert sum(sizes) == QUERIES * (1 + GROUP)
    assert max(sizes) == 4


def share_of(rank: int) -> dict[str, Tensor]:
    """Half of the queries with their passages."""
    batch, half = batch_of(), slice(rank * QUERIES // 2, (rank + 1) * QUERIES // 2)
    rows = {"query": half, "passage": slice(half.start * GROUP, half.stop * GROUP)}
    return {name: value[rows[name.partition("_")[0]]] for name, value in batch.items()}


def one_of_two(rank: int, backbone: Path, directory: Path) -> None:
    """Runs in a process of its own: two backward passes, as the second one finds the buckets of the first one."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    found = {}
    for lora in (False, True):
        model = model_of(backbone, lora=lora)
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            found[lora] = trained_once(wrapped, loss_of(2), share_of(rank))
    torch.save(found, directory / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradients_of_one(backbone_directory, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(one_of_two, (backbone_directory, tmp_path), nprocs=2)
    for rank, lora in itertools.product((0, 1), (False, True)):
        found = torch.load(tmp_path / f"rank{rank}.pt")[lora]
        expected = trained_once(model_of(backbone_directory, lora=lora), loss_of(0), batch_of())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "trained", "checkpointing"), [("off", "lora", "on"), ("zero2", "lora", "on"), ("zero3", "full", "off")]
)
def test_two_processes_with_a_cache_train_like_one_without(
    stage, trained, checkpointing, backbone_directory, collection_directory, training_set_directory, tmp_path
):
    shared = {"passages_per_query": 3, "temperature": 0.05, "query_length": 110, "passage_length": 130}
    shared |= {"tune": trained, "max_steps": 3, "batch_size": 8, "learning_rate": 1e-3, "lora_dropout": 0.0}
    shared |= {"gradient_checkpointing": checkpointing, "precision": "fp32"}
    inputs = (backbone_directory, collection_directory, training_set_directory)
    two = {"deepspeed": stage, "processes": 2, "micro_batch_size": 2, "gradient_cache": 4}
    one = {"deepspeed": "off", "processes": 1, "micro_batch_size": 4, "gradient_cache": 0}
    logs = [tune(TuningSettings(**shared | way), *inputs, tmp_path / str(i)) for i, way in enumerate((two, one))]
    cached, whole = ([(step["loss"], step["grad_norm"]) for step in log.steps] for log in logs)
    assert len(cached) == 3
    assert cached == [pytest.approx(step, rel=1e-3) for step in whole]
