"""Adapts a backbone: passes it through as it is, or trains it by one objective or several; lineage is kept."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_retriever import files, methods
from llm_retriever import settings as steps
from llm_retriever.adaptation.lengths import check_lengths
from llm_retriever.adaptation.objective import Objective, Task
from llm_retriever.data.collection import Collection
from llm_retriever.data.training_set import TrainingSet, check
from llm_retriever.errors import InputError
from llm_retriever.files import layouts
from llm_retriever.methods import AdaptationRecipe, Method
from llm_retriever.models.attention import check_attention_mask
from llm_retriever.models.card import EMBEDDING_TOKENS, Stage, load_lineage, save_lineage, weights_digest
from llm_retriever.models.loading import load_tokenizer
from llm_retriever.settings import AdaptationSettings
from llm_retriever.training.chunks import ByLength
from llm_retriever.training.job import Job, train_in_processes
from llm_retriever.training.launching import processes_of
from llm_retriever.training.passes import divisor
from llm_retriever.training.train import TrainingLog, TrainingRun, discard_checkpoints, train, training_run
from llm_retriever.training.vocabulary import added_tokens, extended, new_token_ids
from llm_retriever.training.weights import attach_lora, load_backbone, save_model

PROBES = 8


def resolved_recipe(settings: AdaptationSettings) -> AdaptationRecipe:
    """Returns the recipe of the adaptation with everything that the settings override."""
    return methods.overridden(methods.ADAPTATIONS[settings.method][settings.recipe], settings)


def resolved_method(settings: AdaptationSettings) -> Method:
    """Returns the row of the retrieval method whose prompts are trained."""
    row = methods.method(methods.descriptor(settings.method).tuned_for, settings.recipe)
    return methods.with_embedding(row, settings.embedding)


def adapt(
    settings: AdaptationSettings, backbone: Path, collection: Path, training_set: Path, adapted: Path
) -> TrainingLog:
    """Adapts a backbone.

    Args:
        settings: Of the step; the method `none` only passes the backbone on, `mntp+simcse` trains one after the other.
        backbone: Output of fetch_backbone.
        collection: The collection that the training set refers to.
        training_set: Output of mine_negatives; `ql` uses its positives.
        adapted: Becomes a backbone directory: causal LM with its head, tokenizer, and a lineage of one stage more.

    Returns:
        The log of the last training; an empty one if there was none.

    Raises:
        InputError: An input is not what it should be, or the training cannot be run as asked.
        SystemExit: 143, after SIGTERM, with a checkpoint saved.
    """
    layouts.BACKBONE.check(adapted)
    if settings.method == "none":
        with layouts.BACKBONE.output(adapted) as draft:
            files.link_tree(backbone, draft)
        return TrainingLog()
    stages = [
        steps.build(AdaptationSettings, {**steps.as_dict(settings), "method": m}) for m in settings.method.split("+")
    ]
    check_backbone(stages, backbone)
    if len(stages) > 1:
        return _in_sequence(stages[0], stages[1], backbone, collection, training_set, adapted)
    run, data = _planned(settings, backbone, collection, training_set, adapted)
    log = _adapted(settings, run, data, backbone, collection, training_set, adapted)
    discard_checkpoints(run)
    return log


def check_backbone(stages: Sequence[AdaptationSettings], backbone: Path) -> None:
    """Raises InputError, before weights are loaded, for what is no backbone, and for rows longer than it reads.

    Raises:
        InputError: Naming the setting to change.
    """
    load_lineage(backbone)
    for stage in stages:
        check_lengths(resolved_recipe(stage), resolved_method(stage), backbone)


def _planned(
    settings: AdaptationSettings, backbone: Path, collection: Path, training_set: Path, adapted: Path
) -> tuple[TrainingRun, str]:
    """Resolves the run of one adaptation, and the digest of its training data; refuses data that cannot be trained on."""
    source = Collection.open(collection)
    data = _checked(training_set, source).digest
    inputs = (weights_digest(backbone), source.fingerprint, data)
    return training_run(settings, f"adapt {settings.method}", adapted, *inputs), data


def _adapted(
    settings: AdaptationSettings,
    run: TrainingRun,
    data: str,
    backbone: Path,
    collection: Path,
    training_set: Path,
    adapted: Path,
) -> TrainingLog:
    """Trains one adaptation; its checkpoints stay."""
    lineage = load_lineage(backbone)
    with layouts.BACKBONE.output(adapted) as draft:
        random = getattr(resolved_recipe(settings), "new_tokens", "mean") == "random"
        with extended(backbone, added_tokens(resolved_method(settings), backbone), random=random) as base:
            inputs = {"backbone": base, "collection": collection, "training_set": training_set}
            log = train_in_processes(__name__, settings, run, draft, **inputs)
        save_lineage(draft, lineage.then(_stage(settings, run, data, log)))
    return log


def _in_sequence(
    one: AdaptationSettings,
    two: AdaptationSettings,
    backbone: Path,
    collection: Path,
    training_set: Path,
    adapted: Path,
) -> TrainingLog:
    """Trains two adaptations, one after the other.

    What the first one made lies beside the output until the second one is complete, and so do its checkpoints in the
    store: where the disk is lost in between, it goes on from its last checkpoint.
    """
    run, data = _planned(one, backbone, collection, training_set, adapted)
    key = run.checkpoints.name if run.checkpoints else ""
    between = adapted.with_name(f".{adapted.name}.{one.method}-{key}")
    if not between.exists():
        _adapted(one, run, data, backbone, collection, training_set, between)
    log = adapt(two, between, collection, training_set, adapted)
    discard_checkpoints(run)
    shutil.rmtree(between)
    return log


def _checked(training_set: Path, source: Collection) -> TrainingSet:
    examples = TrainingSet.open(training_set, source)
    if not len(examples):
        raise InputError("has no examples", file=training_set, hint="mine it from a collection with a train split")
    check(examples, source)
    return examples


def _stage(settings: AdaptationSettings, run: TrainingRun, data: str, log: TrainingLog) -> Stage:
    processes = processes_of(settings)
    used = {"precision": run.precision, "deepspeed": run.deepspeed, "seed": run.seed, "processes": processes}
    recipe = {"recipe": settings.recipe, **dataclasses.asdict(resolved_recipe(settings))}
    row = resolved_method(settings)
    recipe[EMBEDDING_TOKENS] = [list(template.embedding_tokens) for template in (row.passage, row.query)]
    return Stage(settings.method, {**recipe, **used}, data, log.seconds, log.examples)


def work(job: dict[str, Any]) -> None:
    """Runs one training process: loads, trains, saves; rank 0 writes the log."""
    given = Job.read(job, AdaptationSettings)
    settings, run, paths = given.settings, given.run, given.paths
    recipe, row = resolved_recipe(settings), resolved_method(settings)
    tokenizer = load_tokenizer(paths["backbone"])
    task = Task(recipe, row, tokenizer, paths["collection"], paths["training_set"], run.seed)
    found = objective(task)
    model = load_backbone(paths["backbone"], run, tune=recipe.tune, head=found.head, attention=row.attention)
    if recipe.reads_embedding:
        check_attention_mask(model)
    if recipe.tune == "lora":
        model = attach_lora(model, recipe.lora, run.seed, trained_tokens=new_token_ids(tokenizer, row))
    found.prepare(model)
    log = train(model, found.dataset, found.collate, found.loss, recipe.schedule, run)
    save_model(model, tokenizer, base=paths["backbone"], merged=given.draft, probe=_probe(found))
    given.save(log)


def objective(task: Task) -> Objective:
    """Builds the objective of a recipe; rows that differ in length go through the model by length.

    After memory ran out (`passes.divisor`) fewer of them do so at once, except where the loss compares them.
    """
    module, order = task.recipe.module, task.recipe.order
    found: Objective = importlib.import_module(f"llm_retriever.adaptation.{module}").objective(task)
    in_parts = order == "by length" or (order == "as it is" and divisor() > 1)
    return dataclasses.replace(found, loss=ByLength(found.loss)) if in_parts else found


def _probe(objective: Objective) -> list[list[int]]:
    """Picks rows of a few examples, on which the saved model is compared with the trained one."""
    batch = objective.collate([objective.dataset[item] for item in range(min(PROBES, len(objective.dataset)))])
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[real.bool()].tolist() for ids, real in rows]
