"""Training against the loops that people write: sentence-transformers' trainer, full logits, a pass for each prompt.

Contrastive tuning: LoRA on all projections, 16 queries with a positive and 7 negatives each, texts as long as they are. Query
likelihood and EBAE/EBAR: all weights, forward and backward pass. All models are in bf16 where the processor has it.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import two_prompts
from bench_encoding import retriever_of
from datasets import Dataset
from roofline import operations, products
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_callback import PrinterCallback
from works import MATRIX, OURS, Here, Inputs, Work

from llm_retriever.adaptation.query_likelihood import Pair, PairCollator, QueryLikelihoodLoss
from llm_retriever.contrastive.dataset import Group, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.data.collection import Collection
from llm_retriever.exporting.export import export_sentence_transformers
from llm_retriever.methods import QUERY_LIKELIHOOD, Lora, Method, Schedule, method
from llm_retriever.models.prompts import passage_text
from llm_retriever.precision import dtype_of, resolve_precision
from llm_retriever.training.chunks import ByLength
from llm_retriever.training.train import TrainingRun, planned, train
from llm_retriever.training.weights import attach_lora, load_backbone

QUERIES, PASSAGES, LEARNING_RATE, TEMPERATURE = 16, 8, 1e-4, 0.05
LORA = Lora(rank=32, alpha=64, dropout=0.0)
ROWS = 32
"""Of a step of stage one."""
Step = Callable[[], dict[str, Any]]


def recipe(inputs: Inputs) -> Method:
    """RepLLaMA's, with one micro-batch an update."""
    sizes: dict[str, Any] = {"max_steps": inputs.updates, "batch_size": QUERIES, "micro_batch_size": QUERIES}
    schedule = Schedule(epochs=1, **sizes, learning_rate=LEARNING_RATE, warmup=0.1, gradient_checkpointing=False)
    row = method("repllama")
    tuning = replace(row.tuning, temperature=TEMPERATURE, schedule=schedule, tune="lora", lora=LORA)
    return replace(row, query_length=64, passage_length=200, tuning=replace(tuning, passages_per_query=PASSAGES))


def run() -> TrainingRun:
    """A training in the machine's own precision."""
    return TrainingRun("tune", precision=resolve_precision("auto"))


def groups_of(inputs: Inputs, row: Method) -> list[Group]:
    """Training queries, each with a positive and random negatives."""
    collection, draw = Collection.open(inputs.collection), random.Random(0)
    ids, texts, judged = [p.id for p in collection.passages()], collection.queries("train"), collection.qrels("train")
    chosen = itertools.islice(judged, inputs.updates * QUERIES)
    return [Group(texts[q], (next(iter(judged[q])), *draw.sample(ids, PASSAGES - 1))) for q in chosen]


def tune_ours(inputs: Inputs) -> Step:
    """Tunes with this project."""
    row, lookup = recipe(inputs), Collection.open(inputs.collection).lookup()
    collate, groups = GroupCollator(row, AutoTokenizer.from_pretrained(inputs.backbone), lookup), groups_of(inputs, row)
    batches = [collate(groups[start : start + QUERIES]) for start in range(0, len(groups), QUERIES)]
    lengths = [n for b in batches for side in ("query", "passage") for n in b[f"{side}_mask"].sum(dim=1).tolist()]

    def step() -> dict[str, Any]:
        model = load_backbone(inputs.backbone, run(), tune="lora", head=False)
        model = attach_lora(model, LORA, seed=17)
        adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
        log = train(model, groups, collate, ContrastiveLoss(row), row.tuning.schedule, run())
        needed = operations(model.get_base_model(), lengths, passes=2, adapter=adapter, read=1)
        return {"losses": [entry["loss"] for entry in log.steps], "operations": needed, "tokens": sum(lengths)}

    return step


def tune_peer(inputs: Inputs) -> Step:
    """Tunes with sentence-transformers' trainer; its base model is in bf16 as well, its adapter in fp32."""
    row, export = recipe(inputs), inputs.folder()
    retriever = retriever_of(inputs, "fp32")
    retriever.card = replace(retriever.card, query_length=row.query_length, passage_length=row.passage_length)
    export_sentence_transformers(retriever, f"{export}/export")
    columns = as_columns(row, Collection.open(inputs.collection), groups_of(inputs, row))

    def step() -> dict[str, Any]:
        settings = {"dtype": dtype_of(run().precision)}
        peer = SentenceTransformer(f"{export}/export", device="cpu", local_files_only=True, model_kwargs=settings)
        peer.max_seq_length = row.passage_length
        peer[0].auto_model = attach_lora(peer[0].auto_model, LORA, seed=17)
        prompts = {name: peer.prompts["query" if name == "query" else "document"] for name in columns}
        trainer = SentenceTransformerTrainer(
            model=peer,
            args=arguments(row.tuning.schedule, len(columns["query"]), str(export), prompts),
            train_dataset=Dataset.from_dict(columns),
            loss=MultipleNegativesRankingLoss(peer, scale=1 / row.tuning.temperature),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}

    return step


def as_columns(row: Method, collection: Collection, groups: list[Group]) -> dict[str, list[str]]:
    """The groups' texts: query, positive and negatives."""
    lookup, columns = collection.lookup(), {"query": [group.query for group in groups]}
    for place in range(PASSAGES):
        found = [lookup[group.passages[place]] for group in groups]
        name = f"negative_{place}" if place else "positive"
        columns[name] = [passage_text(p.title, p.text, row.title_joiner) for p in found]
    return columns


def arguments(
    schedule: Schedule, examples: int, scratch: str, prompts: dict[str, str]
) -> SentenceTransformerTrainingArguments:
    """The same training in the words of transformers."""
    plan = planned(schedule, examples, 1)
    return SentenceTransformerTrainingArguments(
        output_dir=scratch,
        prompts=prompts,
        per_device_train_batch_size=plan.micro_batch_size,
        max_steps=plan.updates,
        warmup_steps=plan.warmup,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        weight_decay=schedule.weight_decay,
        max_grad_norm=1.0,
        bf16=run().precision == "bf16",
        use_cpu=True,
        seed=run().seed,
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def only_products(inputs: Inputs) -> Callable[[], dict[str, float]]:
    """Only multiplies."""
    return products(load_backbone(inputs.backbone, run(), tune="lora", head=False), dtype_of(run().precision))


def causal_model(inputs: Inputs) -> Any:
    """The backbone with its head, all weights to be trained."""
    return AutoModelForCausalLM.from_pretrained(inputs.backbone, dtype=torch.float32).train()


def forward_and_backward(model: Any, loss: Callable[[Any], Tensor]) -> dict[str, Any]:
    """A training step without the optimiser, which is the same for all."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=run().precision == "bf16"):
        value = loss(model)
    value.backward()
    model.zero_grad()
    return {"losses": [value.item()]}


def likelihood_batch(inputs: Inputs) -> dict[str, Tensor]:
    """Passages and their queries as LLM-QL reads them."""
    settings, source = QUERY_LIKELIHOOD["default"], Collection.open(inputs.collection)
    texts, judged = source.queries("train"), source.qrels("train")
    pairs = [Pair(texts[q], next(iter(judged[q])), q) for q in itertools.islice(judged, ROWS)]
    return PairCollator(settings, ("eos",), AutoTokenizer.from_pretrained(inputs.backbone), source.lookup())(pairs)


def likelihood_ours(inputs: Inputs) -> Step:
    """The head at the labels alone, rows of like length together."""
    model, batch, loss = causal_model(inputs), likelihood_batch(inputs), ByLength(QueryLikelihoodLoss(True))
    lengths, head = batch["attention_mask"].sum(dim=1).tolist(), int(batch["targets"].sum())
    needed = {"operations": operations(model.model, lengths, passes=3, head=head), "tokens": sum(lengths)}
    return lambda: forward_and_backward(model, lambda model: loss(model, batch)) | needed


def likelihood_peer(inputs: Inputs) -> Step:
    """Logits of every position of the padded batch, and labels of -100."""
    model, batch = causal_model(inputs), likelihood_batch(inputs)
    mask = QueryLikelihoodLoss(True).mask(model, batch)
    labels = batch["input_ids"].masked_fill(~batch["targets"], -100)

    def loss(model: Any) -> Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    return lambda: forward_and_backward(model, loss)


def prompts_batch(inputs: Inputs) -> dict[str, Tensor]:
    """Texts with both prompts, as many rows as there are prompts of a step."""
    return two_prompts.batch(AutoTokenizer.from_pretrained(inputs.backbone).vocab_size, ROWS // 2)


def joint_ours(inputs: Inputs) -> Step:
    """Both prompts in one pass over the text."""
    model, batch, loss = causal_model(inputs), prompts_batch(inputs), ByLength(two_prompts.joint())
    return lambda: forward_and_backward(model, lambda model: loss(model, batch))


def joint_peer(inputs: Inputs) -> Step:
    """An ordinary causal pass for each prompt."""
    model, batch = causal_model(inputs), prompts_batch(inputs)
    return lambda: forward_and_backward(model, lambda model: two_prompts.apart(model, batch))


def agreement(tolerance: float, row: dict[str, Any], inputs: Inputs) -> str:
    """The largest difference of a loss."""
    mine, theirs = row["ways"][OURS]["losses"], row["ways"][row["against"]]["losses"]
    apart = max(abs(one - other) for one, other in zip(mine, theirs, strict=True))
    return f"losses differ by {apart:.4f}{'' if apart <= tolerance else ' (differs)'}"


def stage_one(
    name: str, title: str, ours: Callable[..., Step], peer: str, theirs: Callable[..., Step], target: float
) -> Work:
    """A step of stage one."""
    ways = {OURS: Here(ours), peer: Here(theirs)}
    return Work(name, title, ways, target, None, functools.partial(agreement, 0.02))


WORKS = (
    Work(
        "tune",
        "contrastive LoRA, 16 × (1 + 7), natural lengths",
        {OURS: Here(tune_ours), "sentence-transformers' trainer": Here(tune_peer), MATRIX: Here(only_products)},
        2.5,
        0.5,
        functools.partial(agreement, 0.05),
    ),
    stage_one("ql", "query likelihood, a step", likelihood_ours, "full logits, padded", likelihood_peer, 4.0),
    stage_one("ebae-ebar", "EBAE/EBAR, a step", joint_ours, "a pass for each prompt", joint_peer, 1.85),
)
