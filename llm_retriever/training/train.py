"""Trains a model for either stage: one call with schedule, precision, DeepSpeed, progress and resume."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.methods import Schedule
from llm_retriever.precision import resolve_precision
from llm_retriever.progress import Progress
from llm_retriever.settings import as_dict
from llm_retriever.stores.opening import LocalStore, open_store
from llm_retriever.training.checkpoints import Checkpoints, StopRequest, Timer, shared_or_own
from llm_retriever.training.deepspeed import COLLECTIVE_SECONDS, prepare_deepspeed, world_size, zero_configuration
from llm_retriever.training.launching import STOP_FILE, processes_of
from llm_retriever.training.trainer import LossTrainer, Plan, TrainingCallback

MOST_UPDATES = 10**9
"""More than any training takes: rates and counts stay exact."""
NOT_IN_CHECKPOINTS = ("checkpoint_", "node_", "gpus")
"""Starts of settings that do not make it another training: where its checkpoints lie, and what its machines are."""
LossFunction = Callable[[Any, dict[str, Tensor]], Tensor]
"""`loss(model, batch)`: the mean loss over this process's batch, a scalar; it gathers from other processes itself."""


class TrainingDataset(Protocol):
    """A map-style dataset. Where it has `set_epoch(epoch)`, that is called at the start of each epoch, from 0.

    Examples are taken in a random order that follows from the seed, or as they come where it has a true `ordered`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, item: int) -> Any: ...


@dataclass(frozen=True)
class TrainingRun:
    """How a training is run, everything resolved: no `auto`, no unset value.

    Attributes:
        title: What progress shows, as in `"tune llm-ql"`.
        precision: `bf16` or `fp32`.
        deepspeed: `off`, `zero1`, `zero2` or `zero3`.
        seed: Seed of the data order and of dropout.
        checkpoints: Directory of this training's checkpoints, derived from the step's inputs; None = no checkpoints.
        checkpoint_minutes: Time between checkpoints.
        mirror: s3:// prefix that the checkpoints are copied to and resumed from; "" = the directory is enough.
        unit: What an example is, in progress.
    """

    title: str
    precision: str = "fp32"
    deepspeed: str = "off"
    seed: int = 17
    checkpoints: Path | None = None
    checkpoint_minutes: float = 10.0
    mirror: str = ""
    unit: str = "pairs"


@dataclass
class TrainingLog:
    """The log of a training, over all its interruptions.

    Attributes:
        steps: One entry an update: `step`, `loss`, `learning_rate`, `grad_norm`, `epoch`, `seconds` (since the start).
        seconds: Wall-clock time of the training itself.
        examples: Training examples seen.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    examples: int = 0

    def metrics(self) -> dict[str, float]:
        """The training in a few numbers; losses are means over the first and the last tenth of the updates."""
        numbers: dict[str, float] = {"updates": len(self.steps), "pairs": self.examples, "seconds": self.seconds}
        if self.steps:
            last = self.last_losses()
            first = [entry["loss"] for entry in self.steps[: len(last)]]
            numbers["loss_start"], numbers["loss_end"] = sum(first) / len(first), sum(last) / len(last)
        if self.seconds > 0:
            numbers["pairs_per_second"] = self.examples / self.seconds
        return numbers

    def last_losses(self) -> list[float]:
        """Losses of the last tenth of the updates, at least of one."""
        return [entry["loss"] for entry in self.steps[-max(1, len(self.steps) // 10) :]]

    def save(self, path: str | Path) -> None:
        """Writes the log as JSON."""
        files.write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> TrainingLog:
        """Reads a log that `save` wrote."""
        return cls(**files.read_json(path))


def training_run(settings: Any, title: str, output: Path, *digests: str) -> TrainingRun:
    """Resolves the settings of `adapt_backbone` or `tune_retriever` into a run.

    Args:
        settings: Settings with precision, deepspeed, seed, checkpoint_uri, checkpoint_minutes.
        title: What progress shows.
        output: The step's output directory; without a checkpoint_uri the checkpoints lie beside it.
        digests: Digests of the step's inputs; with the settings they name the checkpoints, so that only the same training
            goes on from them.

    Raises:
        InputError: checkpoint_uri is of another kind than a directory or s3:// prefix.
    """
    inputs = {name: value for name, value in as_dict(settings).items() if not name.startswith(NOT_IN_CHECKPOINTS)}
    inputs["processes"] = processes_of(settings)
    key = files.digest([type(settings).__name__, inputs, list(digests)])[:16]
    directory, mirror = output.parent / f".{output.name}.checkpoints" / key, ""
    if settings.checkpoint_uri:
        store = open_store(settings.checkpoint_uri)
        if isinstance(store, LocalStore):
            directory = store.directory / key
        else:
            mirror = f"{store.uri}/{key}"
    return TrainingRun(
        title=title,
        precision=resolve_precision(settings.precision),
        deepspeed=settings.deepspeed,
        seed=settings.seed,
        checkpoints=directory,
        checkpoint_minutes=settings.checkpoint_minutes,
        mirror=mirror,
    )


def discard_checkpoints(run: TrainingRun) -> None:
    """Removes the checkpoints of a training whose result is complete, locally and in the store."""
    if run.checkpoints is not None:
        Checkpoints(run.checkpoints, run.mirror).discard()


def train(
    model: nn.Module,
    dataset: TrainingDataset,
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    loss: LossFunction,
    schedule: Schedule,
    run: TrainingRun,
) -> TrainingLog:
    """Trains `model` in place, from the last complete checkpoint where there is one.

    Runs in one process, or in each process that `launching.launch` started. AdamW, linear schedule with warm-up,
    gradient norm clipped at 1. The model's parameters with `requires_grad` are trained; weights are best loaded with
    `weights.load_backbone`, which knows what ZeRO-3 and bf16 need.

    Args:
        model: A `PreTrainedModel` or `PeftModel`.
        dataset: The examples.
        collate: Makes one batch of tensors of a list of examples; its keys are the loss's business.
        loss: The loss of one micro-batch.
        schedule: `batch_size` is global: accumulation = batch_size / (micro_batch_size · processes).
        run: Precision, DeepSpeed, seed and checkpoints.

    Returns:
        The log; the same in every process.

    Raises:
        InputError: The dataset is too small, the batch cannot be divided, or the loss became infinite or NaN.
        SystemExit: 143 after SIGTERM, 130 after Ctrl-C, with a checkpoint saved.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # Else DeepSpeed, where it is installed, warns that it looked for one.
    plan = planned(schedule, len(dataset), world_size())
    checkpoints = shared_or_own(run.checkpoints, run.mirror) if run.checkpoints else None
    with tempfile.TemporaryDirectory() as scratch, StopRequest(_stop_file()) as stop:
        arguments = _arguments(plan, schedule, run, Path(scratch))
        if getattr(dataset, "ordered", False):
            arguments.train_sampling_strategy = "sequential"
        trainer = LossTrainer(
            model, arguments, collate, dataset, loss=loss, checkpoints=checkpoints, plan=plan, callbacks=[]
        )
        resumed = _restored(trainer, checkpoints, plan, run)
        callback = _callback(trainer, plan, run, stop, resumed)
        with callback.progress:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        if run.deepspeed != "off":
            unset_hf_deepspeed_config()  # Else models that are loaded from now on would be sharded, too.
        # The Trainer wraps the forward of the model it was given; the caller gets it back as it was.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if callback.stopped:
        if trainer.is_world_process_zero():
            print(_farewell(trainer.state.global_step, plan, run, checkpoints), file=sys.stderr, flush=True)
        raise SystemExit(stop.exit_code)
    return _log(trainer.state.log_history, plan.examples(trainer.state.global_step))


def planned(schedule: Schedule, examples: int, world: int) -> Plan:
    """Deals `examples` into micro-batches and updates.

    The micro-batch is the largest divisor of a process's share of the batch that is at most the wanted one, and no
    larger than the dataset allows. A warm-up that would take more than half of the updates was made for a longer training: it
    takes a tenth then. The linear schedule begins a warm-up at the learning rate 0, as that of the Hugging Face Trainer does: a
    warm-up of one update would be that update lost, the only one of the shortest trainings, so it is left out.
    Longer warm-ups stay as they are, for the sake of published recipes.

    Raises:
        InputError: The batch cannot be divided among the processes, there are fewer examples than processes, or nobody could
            wait for so many updates.
    """
    if schedule.batch_size % world:
        raise InputError(
            f"{schedule.batch_size} queries cannot be divided among {world} processes",
            field="batch_size",
            hint=f"use a multiple of {world}",
        )
    if examples < world:
        raise InputError(f"{examples} training examples for {world} processes", hint="use fewer processes or more data")
    share = schedule.batch_size // world
    most = min(schedule.micro_batch_size, share, examples // world)
    micro = next(size for size in range(most, 0, -1) if share % size == 0)
    accumulation, micro_batches = share // micro, examples // (micro * world)
    per_epoch = math.ceil(micro_batches / accumulation)
    asked = schedule.max_steps if schedule.max_steps > 0 else schedule.epochs * per_epoch
    if asked > MOST_UPDATES:
        field = "max_steps" if schedule.max_steps > 0 else "epochs"
        problem = f"asks for more than {MOST_UPDATES:,} updates, {per_epoch:,} an epoch"
        raise InputError(problem, field=field, hint="give fewer")
    updates = max(1, math.ceil(asked))
    decay = math.ceil(schedule.decay_epochs * per_epoch)
    warmup = math.ceil(schedule.warmup * updates) if schedule.warmup < 1 else int(schedule.warmup)
    if warmup > updates / 2:  # made for a longer training
        warmup = math.ceil(updates / 10)
    if warmup == 1:  # its update has the learning rate 0
        warmup = 0
    logarithmic = schedule.warmup_shape == "logarithmic"
    return Plan(micro, accumulation, world, micro_batches, per_epoch, updates, warmup, decay, logarithmic)


def _arguments(plan: Plan, schedule: Schedule, run: TrainingRun, scratch: Path) -> TrainingArguments:
    deepspeed = None
    if run.deepspeed != "off":
        prepare_deepspeed()
        deepspeed = zero_configuration(run.deepspeed, run.precision, plan)
    on_gpu = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(run.checkpoints or scratch),
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        max_steps=plan.updates,
        learning_rate=schedule.learning_rate,
        optim="adamw_torch" if deepspeed else "adamw_torch_fused",
        weight_decay=schedule.weight_decay,
        max_grad_norm=1.0,
        bf16=run.precision == "bf16",
        use_cpu=not on_gpu,
        activation_checkpointing=schedule.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        deepspeed=deepspeed,
        seed=run.seed,
        data_seed=run.seed,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_num_workers=2 if on_gpu else 0,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,  # Else the Trainer logs a mean in place of a NaN.
        save_strategy="no",  # `TrainingCallback` asks for checkpoints.
        report_to=[],
        disable_tqdm=True,
        log_level="error",
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # They are constants, and a model may be called many times an update.
        ddp_timeout=COLLECTIVE_SECONDS,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # Several GPUs in one process would mean nn.DataParallel.
    return arguments


def _restored(trainer: LossTrainer, checkpoints: Checkpoints | None, plan: Plan, run: TrainingRun) -> Path | None:
    """Fetches and returns the checkpoint to resume from: process 0 chooses, one process of each machine fetches."""
    if checkpoints is None:
        return None
    chosen = [checkpoints.newest() if trainer.is_world_process_zero() else None]
    source = checkpoints.source(chosen[0]) if chosen[0] is not None else ""
    if dist.is_initialized():
        dist.broadcast_object_list(chosen)
    if trainer.is_local_process_zero():
        checkpoints.restore(chosen[0])
    trainer.accelerator.wait_for_everyone()
    if chosen[0] is not None and source:
        done = _updates(chosen[0])
        print(f"{run.title}: resumed from update {done:,} of {plan.updates:,} ({source})", file=sys.stderr, flush=True)
    return checkpoints.latest()


def _farewell(done: int, plan: Plan, run: TrainingRun, checkpoints: Checkpoints | None) -> str:
    """The message of a training that was asked to stop: what it has left, and how it goes on."""
    stopped = f"{run.title}: stopped after update {done:,} of {plan.updates:,}"
    if checkpoints is None:
        return f"{stopped}; no checkpoint is kept, and the next run begins anew"
    place = f"{run.mirror}/checkpoint-{done}" if run.mirror else checkpoints.directory / f"checkpoint-{done}"
    return f"{stopped}; the checkpoint {place} is written, and the same command goes on from there"


def _updates(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])


def _callback(
    trainer: LossTrainer, plan: Plan, run: TrainingRun, stop: StopRequest, resumed: Path | None
) -> TrainingCallback:
    done = plan.examples(_updates(resumed.name)) if resumed else 0
    quiet = not trainer.is_world_process_zero()
    progress = Progress(run.title, plan.examples(plan.updates), run.unit, done=done, quiet=quiet)
    timer = Timer(run.checkpoint_minutes) if run.checkpoints else None
    callback = TrainingCallback(trainer, plan, progress, stop, timer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(callback)
    return callback


def _stop_file() -> Path | None:
    named = os.environ.get(STOP_FILE)
    return Path(named) if named else None


def _log(history: list[dict[str, float]], examples: int) -> TrainingLog:
    steps = [entry for entry in history if "loss" in entry]
    return TrainingLog(steps, steps[-1]["seconds"] if steps else 0.0, examples)
