"""Contrastive tuning with this project's `train`, against sentence-transformers' own trainer and loss.

    python benchmarks/sentence_transformers_tuning.py --model MODEL --collection COLLECTION [--steps 20] [--batch-size 32]

MODEL is a Hugging Face causal LM's directory, COLLECTION the output of prepare_corpus with a train split. Both tune the same
model on the same groups of a query, its positive and random negatives, with the same prompts, lengths, batch, precision,
optimiser, learning rate and seed; the peer's loss is MultipleNegativesRankingLoss with scale 1/τ, which has the same pool of
negatives. The batches are the same, so the curves should agree update by update. Both take turns; the best round counts.
Texts are as long as they are: what is gained depends on how much their lengths differ, so the share of padding is shown.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

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

from llm_retriever.contrastive.dataset import Group, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.exporting.export import export_sentence_transformers
from llm_retriever.methods import Method, Schedule, method
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.prompts import passage_text
from llm_retriever.precision import resolve_precision
from llm_retriever.training.train import TrainingRun, planned, train
from llm_retriever.training.weights import load_backbone


class Result(NamedTuple):
    """Seconds of a training, tokens that went through the model with padding, and the loss of each update."""

    seconds: float
    tokens: int
    losses: list[float]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--method", default="repllama", help="A method that sentence-transformers can express.")
    parser.add_argument("--batch-size", type=int, default=32, help="Queries per update, all in one pool.")
    parser.add_argument("--passages-per-query", type=int, default=4)
    parser.add_argument("--query-length", type=int, default=64, help="Queries of more tokens are left out.")
    parser.add_argument("--passage-length", type=int, default=200, help="Tokens; longer passages are cut.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    row, run = recipe(given), TrainingRun("tune", precision=resolve_precision(given.precision))
    collection = Collection.open(given.collection)
    pairs = given.steps * given.batch_size
    collate = GroupCollator(row, AutoTokenizer.from_pretrained(given.model), collection.lookup())
    groups = drawn(collection, collate, given.passages_per_query, pairs)
    real = real_tokens(collate, groups)
    print(f"{given.steps} updates of {given.batch_size} queries and {given.passages_per_query} passages each,", end=" ")
    print(f"{real / pairs / (1 + given.passages_per_query):.0f} tokens a text, {run.precision}")
    best: dict[str, Result] = {}
    for _ in range(given.rounds):
        for name, tune in (("sentence-transformers", tune_peer), ("llm-retriever", tune_own)):
            result = tune(given.model, row, collection, groups, run)
            best[name] = min(best.get(name, result), result)
    for name, (seconds, tokens, losses) in best.items():
        ratio, padding = best["sentence-transformers"].seconds / seconds, 1 - real / tokens
        print(f"{name:>24} {seconds:8.2f}s {pairs / seconds:8.1f} pairs/s  {padding:4.0%} padding  ratio {ratio:.2f}")
        print(" " * 25 + "loss " + " ".join(f"{loss:.3f}" for loss in losses))


def recipe(given: argparse.Namespace) -> Method:
    """The method, fully fine-tuned, with one micro-batch an update."""
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
    return replace(row, query_length=given.query_length, passage_length=given.passage_length, tuning=tuning)


def drawn(collection: Collection, collate: GroupCollator, passages: int, wanted: int) -> list[Group]:
    """At most `wanted` training queries, each with a positive and random negatives.

    Queries that fill their length are left out: the peer's trainer has one length for all columns.
    """
    draw, ids, texts = random.Random(0), [p.id for p in collection.passages()], collection.queries("train")
    judged = collection.qrels("train")
    short = (query for query in judged if len(collate.queries.ids(texts[query])) < collate.queries.length)
    chosen = itertools.islice(short, wanted)
    return [Group(texts[query], (next(iter(judged[query])), *draw.sample(ids, passages - 1))) for query in chosen]


def real_tokens(collate: GroupCollator, groups: list[Group]) -> int:
    """Tokens of all texts, without padding."""
    batches = (collate(groups[start : start + 64]) for start in range(0, len(groups), 64))
    return sum(int(batch[f"{side}_mask"].sum()) for batch in batches for side in ("query", "passage"))


def counted(model: Any) -> list[int]:
    """Tokens, padding included, of every pass through `model` from now on."""
    passes: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: passes.append(given[0].numel()))
    return passes


def tune_own(model: Path, row: Method, collection: Collection, groups: list[Group], run: TrainingRun) -> Result:
    """Tunes with this project."""
    backbone = load_backbone(model, run, tune="full", head=False, attention=row.attention)
    collate, passes = GroupCollator(row, AutoTokenizer.from_pretrained(model), collection.lookup()), counted(backbone)
    started = time.perf_counter()
    log = train(backbone, groups, collate, ContrastiveLoss(row), row.tuning.schedule, run)
    return Result(time.perf_counter() - started, sum(passes), [entry["loss"] for entry in log.steps])


def tune_peer(model: Path, row: Method, collection: Collection, groups: list[Group], run: TrainingRun) -> Result:
    """Tunes with sentence-transformers."""
    with tempfile.TemporaryDirectory() as scratch:
        card = RetrieverCard.of(row, Lineage(str(model)))
        export_sentence_transformers(Retriever.on_backbone(model, card, precision="fp32"), f"{scratch}/export")
        peer = SentenceTransformer(f"{scratch}/export", local_files_only=True, model_kwargs={"dtype": torch.float32})
        peer.max_seq_length = row.passage_length
        columns = as_columns(row, collection, groups)
        prompts = {name: peer.prompts["query" if name == "query" else "document"] for name in columns}
        trainer = SentenceTransformerTrainer(
            model=peer,
            args=arguments(row.tuning.schedule, run, len(groups), scratch, prompts),
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(peer, scale=1 / row.tuning.temperature),
        )
        trainer.remove_callback(PrinterCallback)
        passes, started = counted(peer[0].auto_model), time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - started
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Result(seconds, sum(passes), losses)


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
