"""Runs a compiled pipeline's steps in their images on this machine, as restricted as the cluster runs them.

KFP's `DockerRunner` starts the containers; what it lacks is added here: a word on every step, and a check that a step which
is said to have succeeded has left its answer.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any, ClassVar

from kfp import local
from kfp.local import docker_task_handler, status

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.stores.secret import MOUNTED
from pipelines.journal import Journal, StepRecord, answer_of, note_inputs, step_name

RESTRICTIONS: dict[str, Any] = {
    "network_mode": "none",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "user": "1000:0",
    "tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 - the container's own
    "environment": {
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning",
    },
}
"""What a step may do: no network, a root that cannot be written, no capabilities, no root user."""


def runner(network: str = "none") -> local.DockerRunner:
    """Wraps KFP's runner with the restrictions.

    Args:
        network: `none`; or `host`, or `container:NAME` for what that one reaches: then the steps are also given the store's
            address and keys, and the hub's token, from this process's environment, as on a cluster from a secret.

    Raises:
        InputError: The engine's client is not installed.
    """
    reached = MOUNTED if network != "none" else ()
    store = {name: os.environ[name] for name in reached if name in os.environ}
    options = {"network_mode": network, "environment": {**RESTRICTIONS["environment"], **store}}
    try:
        return local.DockerRunner(**{**RESTRICTIONS, **options})
    except ImportError:
        raise InputError(
            "running in images needs the package docker", field="--in-images", hint="pip install docker"
        ) from None


def open_to_everybody(directory: Path) -> None:
    """Makes a directory that the containers' user may write into, as into the volumes that the cluster gives it."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o1777)


class ContainerTask(docker_task_handler.DockerTaskHandler):
    """One step in its container."""

    journal: ClassVar[Journal]

    def run(self) -> status.Status:
        """Runs the step to its end.

        An engine may remove a container before its exit code was asked for, which KFP takes for success: the step's own
        answer decides.
        """
        note_inputs(self.full_command)
        answer = answer_of(self.full_command)
        name = step_name(self.full_command, self.journal)
        self.journal.started(name)
        started = time.monotonic()
        for folder in (answer.parent, answer.parents[1]):
            open_to_everybody(folder)
        with contextlib.suppress(FileNotFoundError):
            answer.unlink()
        done = super().run() == status.Status.SUCCESS and answer.exists()
        self.journal.exit_code = 0 if done else 1
        outcome = "done" if done else f"FAILED (see above; {EXIT_BAD_INPUT} = bad input)"
        self.journal.ended(StepRecord(name, outcome, time.monotonic() - started))
        return status.Status.SUCCESS if done else status.Status.FAILURE
