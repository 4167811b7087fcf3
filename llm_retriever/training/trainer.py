"""The Hugging Face Trainer with a loss of our own, and the callback that reports, checkpoints and stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llm_retriever.errors import InputError
from llm_retriever.progress import Progress
from llm_retriever.training.checkpoints import Checkpoints, StopRequest, Timer


@dataclass(frozen=True)
class Plan:
    """How a training's examples are dealt into updates.

    Attributes:
        micro_batch_size: Examples that one process holds at once.
        accumulation: Micro-batches per update and process.
        world: Processes.
        micro_batches: Micro-batches per epoch and process; an incomplete one is left out.
        updates_per_epoch: Updates per epoch; the last one may have fewer micro-batches.
        updates: Updates of the whole training.
        warmup: Updates in which the learning rate rises.
        decay: Updates after which it would be 0; more of them than there are where the training is ended before.
        logarithmic: Whether it rises as a logarithm.
    """

    micro_batch_size: int
    accumulation: int
    world: int
    micro_batches: int
    updates_per_epoch: int
    updates: int
    warmup: int
    decay: int = 0
    logarithmic: bool = False

    def rate(self, update: int) -> float:
        """Share of the peak learning rate in an update, counted from 0."""
        if update < self.warmup:
            return math.log(update + 1) / math.log(self.warmup) if self.logarithmic else update / self.warmup
        total = max(self.updates, self.decay)
        return max(0.0, (total - update) / max(1, total - self.warmup))

    def examples(self, updates: int) -> int:
        """Examples seen in the first `updates` updates, over all processes."""
        epochs, rest = divmod(updates, self.updates_per_epoch)
        micro_batches = epochs * self.micro_batches + rest * self.accumulation
        return micro_batches * self.micro_batch_size * self.world


class LossTrainer(Trainer):
    """A Trainer whose loss is a function of the model and the batch, and whose checkpoints are whole or absent.

    Args:
        loss: `loss(model, batch)`, the mean over the micro-batch.
        checkpoints: Where checkpoints go; None = none are written.
        plan: Plan of the learning rate.
    """

    def __init__(
        self,
        *args: Any,
        loss: Callable[[Any, dict[str, Tensor]], Tensor],
        checkpoints: Checkpoints | None,
        plan: Plan,
        **rest: Any,
    ) -> None:
        super().__init__(*args, **rest)
        self.loss, self.checkpoints, self.plan = loss, checkpoints, plan
        # A micro-batch's loss is a mean: the Trainer itself divides it by the accumulation steps.
        self.loss_is_scaled_for_ga, self.model_accepts_loss_kwargs = False, False
        self._started, self._seconds_before = time.monotonic(), 0.0

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a micro-batch.

        Raises:
            InputError: It is not a finite number.
        """
        value = self.loss(model, inputs)
        if not torch.isfinite(value):
            if spoilt := spoilt_weight(model, untouched=self.state.global_step == 0):
                raise InputError(
                    f"the weight {spoilt} holds numbers that are not finite, and was not trained yet",
                    field="backbone",
                    hint="look where the backbone comes from, and fetch or adapt it again",
                )
            raise InputError(
                f"the loss became {value.item()} at update {self.state.global_step + 1}",
                field="learning_rate",
                hint="lower it, or train in fp32" if self.args.bf16 or self.args.fp16 else "lower it",
            )
        return value

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Installs the plan's own schedule in place of the Trainer's."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(optimizer, self.plan.rate)  # type: ignore[arg-type]
        return self.lr_scheduler

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: the Trainer's count needs keys that our batches lack."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the seconds of training so far, also of earlier runs, and drops the Trainer's own summary."""
        if "loss" in logs:
            super().log({**logs, "seconds": self._seconds_before + time.monotonic() - self._started}, start_time)

    def start_clock(self, seconds_before: float) -> None:
        """Starts counting; `seconds_before` were spent before an interruption."""
        self._started, self._seconds_before = time.monotonic(), seconds_before

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.checkpoints is None:
            return
        checkpoint = self.checkpoints.directory / f"checkpoint-{self.state.global_step}"
        sent = _of_all(self.checkpoints.contribute(checkpoint) if self.is_local_process_zero() else {})
        if self.is_world_process_zero():
            self.checkpoints.complete(checkpoint, sent)
        self.accelerator.wait_for_everyone()


def spoilt_weight(model: Any, *, untouched: bool) -> str:
    """The name of a weight that is not finite and that no update has changed; "" where there is none.

    Args:
        model: In training.
        untouched: Whether there was no update yet; else only frozen weights are looked at.
    """
    for name, weight in model.named_parameters():
        if (untouched or not weight.requires_grad) and not torch.isfinite(weight.detach()).all():
            return str(name).removeprefix("module.")
    return ""


def _of_all(uploaded: dict[str, int]) -> dict[str, int]:
    """Merges the file sizes of all processes; returns only when each has uploaded."""
    parts: list[Any] = [uploaded]
    if dist.is_initialized():
        parts = [None] * dist.get_world_size()
        dist.all_gather_object(parts, uploaded)
    return {name: size for part in parts for name, size in part.items()}


class TrainingCallback(TrainerCallback):
    """Tells the dataset its epoch, reports progress, asks for checkpoints when due and stops when asked to."""

    def __init__(
        self, trainer: LossTrainer, plan: Plan, progress: Progress, stop: StopRequest, timer: Timer | None
    ) -> None:
        self.trainer, self.plan, self.progress, self.stop, self.timer = trainer, plan, progress, stop, timer
        self.stopped = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Continues the clock of an interrupted run."""
        self.trainer.start_clock(state.log_history[-1]["seconds"] if state.log_history else 0.0)

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Tells the dataset which epoch begins, or is continued."""
        tell = getattr(self.trainer.train_dataset, "set_epoch", None)
        if tell is not None:
            tell(state.global_step // self.plan.updates_per_epoch)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Decides, in all processes alike, whether to save and whether to stop."""
        due = self.timer is not None and self.timer.is_due()
        stop, due = self._agreed(bool(self.stop), due)
        unfinished = state.global_step < self.plan.updates
        if self.timer is not None and unfinished and (stop or due):
            control.should_save = True
            self.timer.restart()
        if stop and unfinished:
            control.should_training_stop = self.stopped = True

    def _agreed(self, *flags: bool) -> list[bool]:
        if self.plan.world == 1:
            return list(flags)
        shared = torch.tensor(flags, dtype=torch.int32, device=self.trainer.args.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in shared.tolist()]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Reports the loss and the learning rate of an update."""
        if logs and "loss" in logs:
            new = self.plan.examples(state.global_step) - self.progress.done
            self.progress.update(new, loss=float(logs["loss"]), lr=float(logs["learning_rate"]))
