"""What a step hands to the processes that train: its settings, the resolved run, and the paths of inputs and outputs."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from llm_retriever import settings as steps
from llm_retriever.training.launching import launch, processes_of
from llm_retriever.training.train import TrainingLog, TrainingRun
from llm_retriever.training.trainjob.nodes import nodes_of

LOG_FILE = "training_log.json"


class Job(NamedTuple):
    """A job as a training process reads it.

    Attributes:
        settings: Of the step.
        run: Resolved.
        paths: Of the step's inputs, by name.
        draft: The directory that the model is written into.
        log: File of the log.
    """

    settings: Any
    run: TrainingRun
    paths: dict[str, Path]
    draft: Path
    log: Path

    @classmethod
    def read(cls, job: dict[str, Any], settings: type[Any]) -> Job:
        """Reads what `train_in_processes` wrote, with the settings' class."""
        run = TrainingRun(**{**job["run"], "checkpoints": Path(job["run"]["checkpoints"])})
        paths = {name: Path(path) for name, path in job["paths"].items()}
        return cls(steps.build(settings, job["settings"]), run, paths, Path(job["draft"]), Path(job["log"]))

    def save(self, log: TrainingLog) -> None:
        """Writes the log, on rank 0."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            log.save(self.log)


def train_in_processes(module: str, settings: Any, run: TrainingRun, draft: Path, **paths: Path) -> TrainingLog:
    """Trains in as many processes, on as many nodes, as the settings say.

    Args:
        module: Dotted name of a module with `work(job: dict) -> None`, which `Job.read` understands.
        settings: Of the step.
        run: Resolved.
        draft: An existing directory, into which the processes write the model.
        paths: Of the step's inputs, by name.

    Returns:
        The log, which lies in `draft` as well.
    """
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / LOG_FILE
        job = {
            "settings": steps.as_dict(settings),
            "run": {**dataclasses.asdict(run), "checkpoints": str(run.checkpoints)},
            "paths": {name: str(Path(path).resolve()) for name, path in paths.items()},
            "draft": str(draft.resolve()),
            "log": str(written),
        }
        launch(
            module,
            job,
            Path(scratch),
            processes=processes_of(settings),
            deepspeed=settings.deepspeed,
            nodes=nodes_of(settings),
        )
        log = TrainingLog.load(written)
    log.save(draft / LOG_FILE)
    return log
