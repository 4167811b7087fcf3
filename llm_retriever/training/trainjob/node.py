"""The program of every node of a TrainJob: inputs from the store, its share of the processes, the result to the store.

    python -m llm_retriever.training.trainjob.node s3://bucket/prefix

The prefix holds the task, as the step has written it. torchrun's variables say which node this is, and where all meet.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.stores.opening import MANIFEST, Store, open_store, publish
from llm_retriever.training.launching import launch_share
from llm_retriever.training.trainjob.launch import DRAFT, FAILURES, LOG, REFUSAL, RESULT, TASK


def main(uri: str) -> int:
    """Trains this node's share; returns the exit code: 0 done, 2 bad input, 1 anything else, 143 stopped."""
    signal.signal(signal.SIGTERM, _stop)
    place, rank = open_store(uri), int(os.environ["PET_NODE_RANK"])
    try:
        _train(place, rank)
    except InputError as error:
        print(f"node {rank}: {error}", file=sys.stderr, flush=True)
        _leave(place, REFUSAL, json.dumps(error.fields()))
        return EXIT_BAD_INPUT
    except Exception as error:
        text = f"node {rank}: {type(error).__name__}: {error}"
        print(text, file=sys.stderr, flush=True)
        _leave(place, f"{FAILURES}/{rank}.txt", text)
        return 1
    return 0


def _train(place: Store, rank: int) -> None:
    if place.exists(f"{RESULT}/{MANIFEST}"):
        return  # Started again after the end: a node was lost when all was done.
    task = json.loads(place.read(TASK))
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        job = _job(task, directory)
        launch_share(task["module"], job, directory)
        if rank == 0:
            publish(directory / RESULT, place.uri_of(RESULT))


def _job(task: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The job as the step has it, with this machine's paths; its inputs are here then."""
    for name, uri in task["inputs"].items():
        open_store(uri).download("", directory / "inputs" / name)
    (directory / RESULT / DRAFT).mkdir(parents=True)
    return {
        "settings": task["settings"],
        "run": {**task["run"], "checkpoints": str(directory / "checkpoints")},
        "paths": {name: str(directory / "inputs" / name) for name in task["inputs"]},
        "draft": str(directory / RESULT / DRAFT),
        "log": str(directory / RESULT / LOG),
    }


def _leave(place: Store, key: str, text: str) -> None:
    """Leaves a text for the step; where even that fails, the pod's log has to do."""
    with contextlib.suppress(Exception):
        place.write(key, text.encode())


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
