"""Everything once, on a tiny random model: every objective, method and use of a model, compared with the processor."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.gpu import inputs
from benchmarks.gpu.record import Block
from llm_retriever.adaptation.adapt import adapt
from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.contrastive.tuning import tune
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.exporting.export import export
from llm_retriever.methods import ADAPTATIONS, METHODS, Lora, Schedule, descriptor, method
from llm_retriever.methods.adaptation import SEQUENCES
from llm_retriever.models.card import load_lineage
from llm_retriever.precision import resolve_precision
from llm_retriever.reranking.attention import analysed
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt, load_language_model
from llm_retriever.reranking.rerank import Reranker
from llm_retriever.settings import AdaptationSettings, TuningSettings
from llm_retriever.training.train import TrainingLog, TrainingRun, train
from llm_retriever.training.weights import attach_lora, load_backbone

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Largest difference of a number of a vector of length 1 from the processor's in fp32."""
SIZES: dict[str, Any] = {"max_steps": 3, "batch_size": 4, "micro_batch_size": 4}
UPDATES, STOPPED = 6, 3
"""Of the training that is stopped, and the update in which it is."""


class DiffersError(Exception):
    """The device does not compute what the processor does."""


def run(block: Block) -> None:
    """Does everything once."""
    one = Once(block)
    block.item("inputs", one.prepare)
    for objective in (*ADAPTATIONS, *SEQUENCES):
        block.item(f"adapt by {objective}", partial(one.adapt, objective))
    for name in METHODS:
        block.item(f"tune by {name}", partial(one.tune, name))
    for name in METHODS:
        block.item(f"vectors of {name}", partial(one.vectors, name))
    block.item("gradient cache", one.gradient_cache)
    block.item("re-ranking", one.rerank)
    block.item("attention analysis", one.attention)
    for kind in ("merged", "sentence-transformers"):
        block.item(f"export, {kind}", partial(one.export, kind))
    block.item("resume after SIGTERM", one.resume)


class Once:
    """The items, and the directories that they hand to each other."""

    def __init__(self, block: Block) -> None:
        self.device, self.scratch = block.device, block.scratch
        self.backbone, self.collection = block.scratch / "backbone", block.scratch / "collection"
        self.data = (self.collection, block.scratch / "training_set")

    def prepare(self) -> dict[str, Any]:
        """Writes a backbone, a collection and a training set; tells what `precision=auto` is here."""
        inputs.write_backbone(self.backbone)
        inputs.write_collection(self.collection)
        inputs.write_negatives(*self.data)
        return {"passages": len(list(Collection.open(self.collection).passages())), "auto": resolve_precision("auto")}

    def adapt(self, objective: str) -> dict[str, Any]:
        """Adapts by an objective, in the precision that `auto` is here."""
        settings = AdaptationSettings(method=objective, passage_length=96, **SIZES)
        return figures(adapt(settings, self.backbone, *self.data, self.scratch / "adapted" / objective))

    def tune(self, name: str) -> dict[str, Any]:
        """Tunes by a method, on the backbone that was adapted for it where there is one."""
        adapted = next((o for o in ADAPTATIONS if descriptor(o).tuned_for == name), "")
        base = self.scratch / "adapted" / adapted if adapted else self.backbone
        settings = TuningSettings(method=name, query_length=96, passage_length=96, passages_per_query=3, **SIZES)
        return figures(tune(settings, base, *self.data, self.scratch / "tuned" / name))

    def vectors(self, name: str) -> dict[str, Any]:
        """Compares a retriever's vectors with the processor's, which encodes the texts one by one."""
        texts = [passage.text for passage in Collection.open(self.collection).passages()]
        path = self.scratch / "tuned" / name
        exact = Retriever.load(path, device="cpu", precision="fp32")
        expected = np.concatenate([exact.encode_passages([text]) for text in texts])
        apart = {}
        for precision in TOLERANCE:
            found = Retriever.load(path, device=self.device, precision=precision).encode_passages(texts)
            apart[precision] = float(np.abs(found - expected).max())
        return within(apart, TOLERANCE)

    def gradient_cache(self) -> dict[str, Any]:
        """Compares the losses of a training with and without a gradient cache."""
        settings = TuningSettings(method="repllama", precision="fp32", lora_dropout=0, passages_per_query=3, **SIZES)
        losses = []
        for cache in (0, 2):
            output = self.scratch / "cached" / str(cache)
            log = tune(replace(settings, gradient_cache=cache), self.backbone, *self.data, output)
            losses.append([entry["loss"] for entry in log.steps])
        return within({"losses": apart(*losses)}, {"losses": 1e-3})

    def rerank(self) -> dict[str, Any]:
        """Re-ranks a run with the attention block and without it, and compares the scores with the processor's."""
        source, found = Collection.open(self.collection), []
        queries, ids = source.queries("test"), [passage.id for passage in source.passages()]
        first = {name: {other: float(-rank) for rank, other in enumerate(ids[:8])} for name in queries}
        for device in ("cpu", self.device):
            reranker = Reranker(self._scorer(device), depth=8)
            runs = [reranker.run(first, queries, attention_block=block) for block in (True, False)]
            found.append([run[q][p] for run in runs for q in run for p in first[q]])
        return within({"scores": apart(*found)}, {"scores": 1e-2}) | {"pairs": len(found[0])}

    def _scorer(self, device: str) -> QueryLikelihood:
        adapted = self.scratch / "adapted" / "ql"
        model, tokenizer = load_language_model(adapted, precision="fp32", device=device)
        template = QueryPrompt.of(load_lineage(adapted))
        return QueryLikelihood(model, tokenizer, template, Collection.open(self.collection).lookup())

    def attention(self) -> dict[str, Any]:
        """Compares the attention on [E] with the processor's."""
        source, adapted = Collection.open(self.collection), self.scratch / "adapted" / "ql"
        judged, texts = source.qrels("test"), source.queries("test")
        pairs = [(texts[name], next(iter(grades))) for name, grades in judged.items()]
        template, options = QueryPrompt.of(load_lineage(adapted)), {"precision": "fp32"}
        found = [
            analysed({"ql": adapted}, template, source.lookup(), pairs, device=device, **options)["models"]["ql"]
            for device in ("cpu", self.device)
        ]
        layers = (np.ravel(one["layers"]).tolist() for one in found)
        return within({"weights": apart(*layers)}, {"weights": 1e-4}) | {"on_e": found[1]["embedding_share"]}

    def export(self, kind: Any) -> dict[str, Any]:
        """Exports; the library itself compares the vectors of what is written."""
        directory = self.scratch / "exports" / kind
        export(self.scratch / "tuned" / "repllama", directory, format=kind)
        return {"files": len(list(directory.rglob("*")))}

    def resume(self) -> dict[str, Any]:
        """Stops a training by SIGTERM, resumes it, and compares its losses with those of one that was left alone."""
        alone, stopped = (self.scratch / "resumed" / name for name in ("alone", "stopped"))
        expected = self._train(alone)
        try:
            self._train(stopped, stop=True)
            raise DiffersError("the training took no notice of SIGTERM")
        except SystemExit as stop:
            code = stop.code
        log = self._train(stopped)
        losses = [[entry["loss"] for entry in one.steps] for one in (expected, log)]
        return {"code": code, "updates": len(log.steps)} | within({"losses": apart(*losses)}, {"losses": 1e-3})

    def _train(self, checkpoints: Path, stop: bool = False) -> TrainingLog:
        """Tunes a little; with `stop` it sends itself SIGTERM, as a cluster does before it takes a machine away."""
        row, source = method("repllama"), Collection.open(self.collection)
        collate = GroupCollator(row, AutoTokenizer.from_pretrained(self.backbone), source.lookup())
        run = TrainingRun("resume", resolve_precision("auto"), checkpoints=checkpoints)
        model = attach_lora(load_backbone(self.backbone, run, tune="lora", head=False), Lora(), run.seed)
        schedule = Schedule(1, 4, 4, 1e-4, 0, max_steps=UPDATES)
        loss: Callable[..., Any] = ContrastiveLoss(row)
        return train(
            model, ContrastiveDataset(self.data[1], 3, 17), collate, stopping(loss) if stop else loss, schedule, run
        )


def stopping(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss that sends its process SIGTERM in one of the updates."""
    calls = iter(range(1, UPDATES + 1))

    def called(model: Any, batch: dict[str, torch.Tensor]) -> Any:
        if next(calls) == STOPPED:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    return called


def figures(log: TrainingLog) -> dict[str, Any]:
    """A training in a few figures."""
    kept = ("updates", "pairs_per_second", "loss_start", "loss_end")
    return {name: value for name, value in log.metrics().items() if name in kept}


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def within(apart: dict[str, float], tolerance: dict[str, float]) -> dict[str, float]:
    """Gives differences back.

    Raises:
        DiffersError: One is larger than it may be.
    """
    if wrong := [name for name, value in apart.items() if not value <= tolerance[name]]:
        raise DiffersError(", ".join(f"{name} by {apart[name]:.3g}, not {tolerance[name]:g}" for name in wrong))
    return {f"{name}_apart": value for name, value in apart.items()}
