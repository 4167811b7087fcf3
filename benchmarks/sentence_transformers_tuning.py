"""Contrastive tuning with this project's `train`, against sentence-transformers' own trainer and loss.

    python benchmarks/sentence_transformers_tuning.py --model MODEL --collection COLLECTION [--steps 20] [--batch-size 32]

MODEL is a Hugging Face causal LM's directory, COLLECTION the output of prepare_corpus with a train split. Both tune the same
model on the same groups of a query, its positive and random negatives, with the same prompts, lengths, batch, precision,
optimiser, learning rate and seed; the peer's loss is MultipleNegativesRankingLoss with scale 1/τ, which has the same pool of
negatives. The batches are the same, so the curves should agree update by update. Both take turns; the best round counts.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import AutoTokenizer
from transformers.trainer_callback import PrinterCallback

from llm_retriever.card import Lineage, RetrieverCard
from llm_retriever.collection import Collection
from llm_retriever.contrastive.dataset import Group, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.exports import export_sentence_transformers
from llm_retriever.methods import Method, Schedule, method
from llm_retriever.precision import resolve_precision
from llm_retriever.prompts import passage_text
from llm_retriever.retriever import Retriever
from llm_retriever.training import TrainingRun, planned, train
from llm_retriever.weights import load_backbone

Result = tuple[float, list[float]]
"""Seconds of the training, and the loss of each update."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--method", default="repllama", help="A method that sentence-transformers can express.")
    parser.add_argument("--batch-size", type=int, default=32, help="Queries per update, all in one pool.")
    parser.add_argument("--passages-per-query", type=int, default=4)
    parser.add_argument("--length", type=int, default=128, help="Tokens of a query and of a passage.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    row, run = recipe(given), TrainingRun("tune", precision=resolve_precision(given.precision))
    collection = Collection.open(given.collection)
    groups = drawn(collection, given.passages_per_query, given.steps * given.batch_size)
    pairs = given.steps * given.batch_size
    print(
        f"{given.steps} updates of {given.batch_size} queries and {given.passages_per_query} passages each, {run.precision}"
    )
    best: dict[str, Result] = {}
    for _ in range(given.rounds):
        for name, tune in (("sentence-transformers", tune_peer), ("llm-retriever", tune_own)):
            result = tune(given.model, row, collection, groups, run)
            best[name] = min(best.get(name, result), result)
    for name, (seconds, losses) in best.items():
        ratio = best["sentence-transformers"][0] / seconds
        print(f"{name:>24} {seconds:8.2f}s {pairs / seconds:8.1f} pairs/s  ratio {ratio:.2f}")
        print(" " * 25 + "loss " + " ".join(f"{loss:.3f}" for loss in losses))


def recipe(given: argparse.Namespace) -> Method:
    """The method with equal lengths on both sides: the peer's trainer has one length for all columns."""
    schedule = Schedule(
        epochs=1,
        max_steps=given.steps,
        batch_size=given.batch_size,
        micro_batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        warmup=0.1,
        gradient_checkpointing=False,
    )
    row = method(given.method)
    tuning = replace(row.tuning, temperature=given.temperature, schedule=schedule, tune="full")
    tuning = replace(tuning, passages_per_query=given.passages_per_query)
    return replace(row, query_length=given.length, passage_length=given.length, tuning=tuning)


def drawn(collection: Collection, passages: int, wanted: int) -> list[Group]:
    """At most `wanted` training queries, each with a positive and random negatives."""
    draw, ids, texts = random.Random(0), [p.id for p in collection.passages()], collection.queries("train")
    judged = itertools.islice(collection.qrels("train").items(), wanted)
    return [Group(texts[query], (next(iter(found)), *draw.sample(ids, passages - 1))) for query, found in judged]


def tune_own(model: Path, row: Method, collection: Collection, groups: list[Group], run: TrainingRun) -> Result:
    """Tunes with this project."""
    backbone = load_backbone(model, run, tune="full", head=False, attention=row.attention)
    collate = GroupCollator(row, AutoTokenizer.from_pretrained(model), collection.lookup())
    started = time.perf_counter()
    log = train(backbone, groups, collate, ContrastiveLoss(row), row.tuning.schedule, run)
    return time.perf_counter() - started, [entry["loss"] for entry in log.steps]


def tune_peer(model: Path, row: Method, collection: Collection, groups: list[Group], run: TrainingRun) -> Result:
    """Tunes with sentence-transformers."""
    with tempfile.TemporaryDirectory() as scratch:
        card = RetrieverCard.of(row, Lineage(str(model)))
        export_sentence_transformers(Retriever.on_backbone(model, card, precision="fp32"), f"{scratch}/export")
        peer = SentenceTransformer(f"{scratch}/export", local_files_only=True, model_kwargs={"dtype": torch.float32})
        columns = as_columns(row, collection, groups)
        prompts = {name: peer.prompts["query" if name == "query" else "document"] for name in columns}
        trainer = SentenceTransformerTrainer(
            model=peer,
            args=arguments(row.tuning.schedule, run, len(groups), scratch, prompts),
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(peer, scale=1 / row.tuning.temperature),
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    return seconds, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def as_columns(row: Method, collection: Collection, groups: list[Group]) -> dict[str, list[str]]:
    """The groups' texts: query, positive and negatives."""
    lookup = collection.lookup()
    columns = {"query": [group.query for group in groups]}
    for place in range(row.tuning.passages_per_query):
        found = [lookup[group.passages[place]] for group in groups]
        name = f"negative_{place}" if place else "positive"
        columns[name] = [passage_text(p.title, p.text, row.title_joiner) for p in found]
    return columns


def arguments(
    schedule: Schedule, run: TrainingRun, examples: int, scratch: str, prompts: dict[str, str]
) -> SentenceTransformerTrainingArguments:
    """The same training in the words of transformers."""
    plan = planned(schedule, examples, 1)
    return SentenceTransformerTrainingArguments(
        output_dir=scratch,
        prompts=prompts,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        max_steps=plan.updates,
        warmup_steps=plan.warmup,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        weight_decay=schedule.weight_decay,
        max_grad_norm=1.0,
        bf16=run.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=run.seed,
        dataloader_drop_last=True,
        dataloader_num_workers=2 if torch.cuda.is_available() else 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main()
