"""Tunes an adapted backbone contrastively into a retriever's directory: model, adapter and card."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import torch

from llm_retriever.contrastive.dataset import ContrastiveDataset, GroupCollator
from llm_retriever.contrastive.loss import ContrastiveLoss
from llm_retriever.contrastive.negative_sources import homogeneous
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_queries import write_training_queries
from llm_retriever.data.training_set import EXAMPLES_FILE, TrainingSet, check
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.files.code_digest import installed_versions
from llm_retriever.methods import ADAPTATIONS, Method, descriptor, method, overridden, with_embedding, with_read_out
from llm_retriever.models.card import EMBEDDING_TOKENS, RetrieverCard, Stage, load_lineage, weights_digest
from llm_retriever.models.loading import load_config, load_tokenizer
from llm_retriever.models.prompts import PromptEncoder
from llm_retriever.settings import TuningSettings, is_unset
from llm_retriever.training.job import Job, train_in_processes
from llm_retriever.training.launching import processes_of
from llm_retriever.training.train import TrainingLog, TrainingRun, discard_checkpoints, planned, train, training_run
from llm_retriever.training.vocabulary import added_tokens
from llm_retriever.training.weights import attach_lora, load_backbone, save_model

MODEL, ADAPTER = "model", "adapter"
GUESS = 0.01
"""How near to guessing the loss of every one of the last updates is where all vectors are alike, as a share."""


def resolved_method(settings: TuningSettings) -> Method:
    """Returns the row of the methods table with everything that the settings override.

    Lengths in the settings are those of one copy of a text: a method that needs two (Echo) gets twice as many tokens.

    Raises:
        InputError: A setting does not go with the method.
    """
    row = with_read_out(with_embedding(method(settings.method, settings.recipe), settings.embedding), settings.read_out)
    if settings.read_out and settings.method != "llama2vec":
        raise InputError(
            f"{settings.method} has one prompt for queries and one for passages",
            field="read_out",
            hint="leave it empty",
        )
    row = overridden(row, settings)
    if row.query.between is None:
        return row
    lengths = {name: getattr(settings, name) for name in ("query_length", "passage_length")}
    return dataclasses.replace(row, **{name: 2 * length for name, length in lengths.items() if not is_unset(length)})


def tune(settings: TuningSettings, adapted: Path, collection: Path, training_set: Path, retriever: Path) -> TrainingLog:
    """Tunes a backbone into a retriever.

    Args:
        settings: Settings of the step.
        adapted: A backbone directory, output of fetch_backbone or adapt_backbone.
        collection: The collection that the training set refers to.
        training_set: Output of mine_negatives.
        retriever: Becomes a directory with `retriever_card.json`, `model/` (a causal LM with everything merged), with
            LoRA `adapter/`, and digests of the training queries, by which later runs know them again.

    Returns:
        The log of the training.

    Raises:
        InputError: An input is not what it should be, or the training cannot be run as asked.
        SystemExit: 143, after SIGTERM, with a checkpoint saved.
    """
    row, lineage, source = resolved_method(settings), load_lineage(adapted), Collection.open(collection)
    examples = TrainingSet.open(training_set, source)
    if not len(examples):
        raise InputError("has no examples", file=training_set, hint="mine it from a collection with a train split")
    check(examples, source)
    check_teacher_scores(row, examples)
    check_tokenizer(row, adapted)
    inputs = (weights_digest(adapted), source.fingerprint, examples.digest)
    run = training_run(settings, f"tune {row.name}", retriever, *inputs)
    paths = {"adapted": adapted, "collection": collection, "training_set": training_set}
    with layouts.RETRIEVER.output(retriever) as draft:
        log = train_in_processes(__name__, settings, run, draft, **paths)
        write_training_queries(draft, (example.query for example in TrainingSet.open(training_set).examples()))
        used = _stage_settings(row, run, processes_of(settings))
        stage = Stage("contrastive", used, examples.digest, log.seconds, log.examples)
        digest = weights_digest(draft / MODEL)
        RetrieverCard.of(row, lineage.then(stage), weights=digest, versions=versions()).save(draft)
    plan = planned(row.tuning.schedule, len(examples), processes_of(settings))
    if warning := guesses(log, row, plan.micro_batch_size * plan.world):
        print(warning, file=sys.stderr, flush=True)
    discard_checkpoints(run)
    return log


def guesses(log: TrainingLog, row: Method, queries: int) -> str:
    """Tells of a training that learnt nothing: its loss ends at the logarithm of the number of passages scored.

    That is the loss of vectors which are all alike, as after too high a learning rate.

    Args:
        log: Of the training.
        row: As it was trained.
        queries: Scored against each other's passages.

    Returns:
        A warning, or nothing.
    """
    passages = queries * row.tuning.passages_per_query
    guess, last = math.log(passages), log.last_losses()
    if row.tuning.distillation_weight or not last or any(abs(loss - guess) > GUESS * guess for loss in last):
        return ""
    told = (
        f"the loss ends at {last[-1]:.3f}, which is that of guessing one of {passages:,} passages: nothing was learnt"
    )
    return f"warning: {told}; a lower learning_rate may help, or more updates"


def check_teacher_scores(row: Method, examples: TrainingSet) -> None:
    """Raises InputError where a method distils a teacher that the training set holds no scores of.

    Raises:
        InputError: The first example without them.
    """
    if not row.tuning.distillation_weight:
        return
    for line, example in enumerate(examples.examples(), 1):
        if example.has_teacher and example.negatives:
            continue
        lacks = "a teacher's score for a passage" if example.negatives else "negatives that a teacher has scored"
        raise InputError(
            f"query {example.query_id!r} lacks {lacks}",
            file=examples.directory / EXAMPLES_FILE,
            line=line,
            field="score_teacher",
            hint="score every positive and negative, or use distillation_weight=0",
        )


def check_tokenizer(row: Method, backbone: Path) -> None:
    """Raises InputError, before weights are loaded, for a method that does not go with a backbone's tokenizer.

    Raises:
        InputError: The tokenizer lacks embedding tokens of the method, a length leaves no room for a text, or a prefix of
            the vectors is none.
    """
    missing = added_tokens(row, backbone)
    if missing:
        count = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise InputError(
            f"{row.name} is read out at {missing[0]}{count}, tokens that this backbone does not have",
            file=backbone,
            field="method",
            hint="adapt it first (ebae_ebar for llama2vec, ql with the same embedding), or use another embedding",
        )
    _check_embedding_tokens(row, backbone)
    shape = load_config(backbone).get_text_config()
    if wrong := [n for n in row.tuning.prefixes if n >= shape.hidden_size]:
        problem = f"vectors have {shape.hidden_size:,} numbers, of which {wrong[0]:,} are no prefix"
        raise InputError(problem, field="matryoshka_dimensions", hint="give fewer; whole vectors are always trained")
    most = getattr(shape, "max_position_embeddings", None)
    for name in ("query_length", "passage_length"):
        if most is not None and getattr(row, name) > most:
            raise InputError(f"the model reads at most {most} tokens, not {getattr(row, name)}", field=name)
    tokenizer = load_tokenizer(backbone)
    PromptEncoder(tokenizer, row.query, row.query_length, setting="query_length")
    PromptEncoder(tokenizer, row.passage, row.passage_length, setting="passage_length")


def _check_embedding_tokens(row: Method, backbone: Path) -> None:
    """Raises InputError where a vector would be read at other tokens than stage one has trained for it."""
    recorded = [stage.settings.get(EMBEDDING_TOKENS) for stage in load_lineage(backbone).stages if _trains(stage, row)]
    trained = recorded[-1] if recorded else None
    for tokens in (list(row.passage.embedding_tokens), list(row.query.embedding_tokens)):
        if trained and tokens not in trained:
            raise InputError(
                f"stage one trained the embedding tokens {' '.join(trained[0])}, not {' '.join(tokens)}",
                file=backbone,
                field="embedding",
                hint="use the same embedding and the same recipe in both stages",
            )


def _trains(stage: Stage, row: Method) -> bool:
    """Whether a stage has trained this method's embedding tokens."""
    known = descriptor(stage.stage) if stage.stage in ADAPTATIONS else None
    return known is not None and known.reads_embedding and known.tuned_for == row.name


def work(job: dict[str, Any]) -> None:
    """Runs one training process: loads, trains, saves; rank 0 writes the log."""
    given = Job.read(job, TuningSettings)
    settings, run, paths = given.settings, given.run, given.paths
    row = resolved_method(settings)
    tokenizer = load_tokenizer(paths["adapted"])
    collate = GroupCollator(row, tokenizer, Collection.open(paths["collection"]).lookup())
    dataset: Any = ContrastiveDataset(paths["training_set"], row.tuning.passages_per_query, run.seed)
    if row.tuning.sources == "homogeneous":
        dataset = homogeneous(dataset, row.tuning.schedule.batch_size, run.seed)
    model = load_backbone(paths["adapted"], run, tune=row.tuning.tune, head=False, attention=row.attention)
    if row.tuning.tune == "lora":
        model = attach_lora(model, row.tuning.lora, run.seed)
    log = train(model, dataset, collate, ContrastiveLoss(row), row.tuning.schedule, run)
    probe = collate.queries.batch([dataset[item].query for item in range(min(8, len(dataset)))])
    merged, adapter = given.draft / MODEL, given.draft / ADAPTER
    save_model(model, tokenizer, base=paths["adapted"], merged=merged, adapter=adapter, probe=probe)
    given.save(log)


def _stage_settings(row: Method, run: TrainingRun, processes: int) -> dict[str, Any]:
    used = {"precision": run.precision, "deepspeed": run.deepspeed, "seed": run.seed, "processes": processes}
    lengths = {"query_length": row.query_length, "passage_length": row.passage_length}
    return {**dataclasses.asdict(row.tuning), **lengths, **used, "recipe": row.recipe}


def versions() -> dict[str, str]:
    """Versions of the packages that decide the weights, of those that are installed: DeepSpeed need not be."""
    named = ("llm-retriever", "torch", "transformers", "peft", "tokenizers", "deepspeed")
    return installed_versions(named) | {"cuda": torch.version.cuda or ""}
