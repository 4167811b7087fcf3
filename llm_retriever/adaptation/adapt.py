"""From a backbone to an adapted one: passed through as it is, or trained by query likelihood; its lineage is kept."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import AutoTokenizer

from llm_retriever import files, methods
from llm_retriever import settings as steps
from llm_retriever.adaptation.query_likelihood import PairCollator, PairDataset, QueryLikelihoodLoss
from llm_retriever.card import Stage, load_lineage, save_lineage, weights_digest
from llm_retriever.collection import Collection
from llm_retriever.errors import InputError
from llm_retriever.launching import launch, resolve_processes
from llm_retriever.methods import QUERY_LIKELIHOOD, QueryLikelihoodRecipe
from llm_retriever.settings import AdaptationSettings
from llm_retriever.training import TrainingLog, TrainingRun, discard_checkpoints, train, training_run
from llm_retriever.training_set import TrainingSet, check
from llm_retriever.weights import attach_lora, load_backbone, save_model

LOG_FILE = "training_log.json"
PROBES = 8
TUNED_FOR = "llm-ql"
"""The method whose embedding tokens stand between passage and query."""


def resolved_recipe(settings: AdaptationSettings) -> QueryLikelihoodRecipe:
    """The query-likelihood recipe with everything that the settings override."""
    return methods.overridden(QUERY_LIKELIHOOD[settings.recipe], settings)


def adapt(
    settings: AdaptationSettings, backbone: Path, collection: Path, training_set: Path, adapted: Path
) -> TrainingLog:
    """Adapts a backbone.

    Args:
        settings: Of the step; the method `none` only passes the backbone on.
        backbone: Output of fetch_backbone.
        collection: The collection that the training set refers to.
        training_set: Output of mine_negatives; its positives are used.
        adapted: Becomes a backbone directory: causal LM with its head, tokenizer, and a lineage of one stage more.

    Returns:
        The log of the training; an empty one if there was none.

    Raises:
        InputError: An input is not what it should be, or the training cannot be run as asked.
        SystemExit: 143, after SIGTERM, with a checkpoint saved.
    """
    lineage = load_lineage(backbone)
    with files.atomic_directory(adapted) as draft:
        if settings.method == "none":
            pass_through(backbone, draft)
            return TrainingLog()
        source = Collection.open(collection)
        examples = _checked(training_set, source)
        inputs = (weights_digest(backbone), source.fingerprint, examples.digest)
        run = training_run(settings, "adapt ql", adapted, *inputs)
        log = _launched(settings, run, draft, backbone=backbone, collection=collection, training_set=training_set)
        save_lineage(draft, lineage.then(_stage(settings, run, examples.digest, log)))
    discard_checkpoints(run)
    return log


def _checked(training_set: Path, source: Collection) -> TrainingSet:
    examples = TrainingSet.open(training_set, source)
    if not len(examples):
        raise InputError("has no examples", file=training_set, mend="mine it from a collection with a train split")
    check(examples, source)
    return examples


def _launched(settings: AdaptationSettings, run: TrainingRun, draft: Path, **paths: Path) -> TrainingLog:
    """Trains in as many processes as the settings say; the model is then in `draft`."""
    with tempfile.TemporaryDirectory() as scratch:
        log_file = Path(scratch) / LOG_FILE
        job = {
            "settings": steps.as_dict(settings),
            "run": {**dataclasses.asdict(run), "checkpoints": str(run.checkpoints)},
            "paths": {name: str(Path(path).resolve()) for name, path in paths.items()},
            "draft": str(draft.resolve()),
            "log": str(log_file),
        }
        processes = resolve_processes(settings.processes)
        launch(__name__, job, Path(scratch), processes=processes, deepspeed=settings.deepspeed)
        return TrainingLog.load(log_file)


def _stage(settings: AdaptationSettings, run: TrainingRun, data: str, log: TrainingLog) -> Stage:
    processes = resolve_processes(settings.processes)
    used = {"precision": run.precision, "deepspeed": run.deepspeed, "seed": run.seed, "processes": processes}
    recipe = {"recipe": settings.recipe, **dataclasses.asdict(resolved_recipe(settings))}
    return Stage("ql", {**recipe, **used}, data, log.seconds, log.examples)


def pass_through(backbone: Path, directory: Path) -> None:
    """Gives a backbone on unchanged, lineage included: by hard links, or copies where the file system has none."""
    shutil.copytree(backbone, directory, copy_function=_link_or_copy, dirs_exist_ok=True)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def work(job: dict[str, Any]) -> None:
    """One training process: loads, trains, saves; rank 0 writes the log."""
    settings = steps.build(AdaptationSettings, job["settings"])
    run = TrainingRun(**{**job["run"], "checkpoints": Path(job["run"]["checkpoints"])})
    paths = {name: Path(path) for name, path in job["paths"].items()}
    recipe = resolved_recipe(settings)
    tokenizer = AutoTokenizer.from_pretrained(paths["backbone"])
    embedding_tokens = methods.method(TUNED_FOR, settings.recipe).embedding_tokens
    collate = PairCollator(recipe, embedding_tokens, tokenizer, Collection.open(paths["collection"]).lookup())
    dataset = PairDataset(paths["training_set"], run.seed)
    model = load_backbone(paths["backbone"], run, tune=recipe.tune, head=True)
    if recipe.tune == "lora":
        model = attach_lora(model, recipe.lora, run.seed)
    log = train(model, dataset, collate, QueryLikelihoodLoss(recipe.attention_block), recipe.schedule, run)
    save_model(model, tokenizer, base=paths["backbone"], merged=Path(job["draft"]), probe=_probe(collate, dataset))
    if not dist.is_initialized() or dist.get_rank() == 0:
        log.save(job["log"])


def _probe(collate: PairCollator, dataset: PairDataset) -> list[list[int]]:
    """Rows of a few training pairs, on which the saved model is compared with the trained one."""
    batch = collate([dataset[item] for item in range(min(PROBES, len(dataset)))])
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[real.bool()].tolist() for ids, real in rows]
