"""A step's side of a training on several nodes: uploads its inputs, runs a TrainJob, fetches the result."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.stores.opening import MANIFEST, Store, manifest_of, open_store, publish
from llm_retriever.training.trainjob import follow
from llm_retriever.training.trainjob.client import Client
from llm_retriever.training.trainjob.manifest import ASKED, ATTEMPT_LABEL, GRACE_SECONDS, Own, manifest, specification
from llm_retriever.training.trainjob.nodes import Nodes
from llm_retriever.training.trainjob.pods import is_leaving

FOLDER = "trainjob"
"""Below a training's checkpoints in the store: everything that the step and its nodes tell each other."""
TASK, RESULT, REFUSAL, FAILURES = "task.json", "result", "refusal.json", "failures"
DRAFT, LOG = "draft", "log.json"
STAGED = "staged"
"""Below the checkpoint prefix: inputs, each under the digest of its content."""
DIGITS = 10
CREATIONS = 12
"""How often the making of a TrainJob is tried, or the one looked for that another step has made meanwhile."""


def launch_on_nodes(module: str, job: Mapping[str, Any], nodes: Nodes) -> None:
    """Calls `work(job)` of `module` in the processes of several nodes; the job's `draft` and `log` are here afterwards.

    A training whose result is in the store already is not run again, and one that is under way is only followed.

    Args:
        module: Dotted name of a module with `work(job: dict) -> None`.
        job: `settings`, `run` (with a mirror), `paths` of input directories, and where `draft` and `log` go.
        nodes: What is asked for.

    Raises:
        InputError: There is no cluster, it refuses the TrainJob, or a node refuses its input.
        RuntimeError: The training failed; with the last lines of a failed node's log.
    """
    mirror = job["run"]["mirror"]
    place = open_store(f"{mirror}/{FOLDER}")
    if not place.exists(f"{RESULT}/{MANIFEST}"):
        client = Client.connect()
        inputs = {name: staged(path, mirror.rpartition("/")[0]) for name, path in job["paths"].items()}
        run = {name: value for name, value in job["run"].items() if name != "checkpoints"}
        task = {"module": module, "settings": job["settings"], "run": run, "inputs": inputs}
        _train(client, place, task, nodes)
    _take_over(place, Path(job["draft"]), Path(job["log"]))


def staged(path: str | Path, prefix: str) -> str:
    """Brings a directory into the store, unless the same content is there, and returns its URI."""
    content = manifest_of(Path(path))
    uri = f"{prefix}/{STAGED}/{files.digest(content)[:32]}"
    publish(path, uri, content)
    return uri


def _train(client: Client, place: Store, task: dict[str, Any], nodes: Nodes) -> None:
    own = client.own()
    if not (nodes.image or own.image):
        raise InputError(
            "the step does not know its own image",
            field="node_image",
            hint="say which image the nodes run (run_gpu_image, where the pipeline is compiled or submitted)",
        )
    for attempt in range(1, CREATIONS + 1):
        try:
            _trained(client, place, task, nodes, own)
        except FileExistsError:
            if attempt == CREATIONS:
                raise
            time.sleep(follow.POLL_SECONDS)
        else:
            return


def _trained(client: Client, place: Store, task: dict[str, Any], nodes: Nodes, own: Own) -> None:
    """Follows the TrainJob that is under way, or a new one, to its end, and removes it.

    It stays only where it cannot be followed any longer: the step's retry finds it.

    Raises:
        FileExistsError: Another step has made it meanwhile.
    """
    training, asked = files.digest([place.uri])[:DIGITS], _asked(place, task, nodes, own)
    running, number = _under_way(client, training, asked)
    spec, title = specification(nodes, place.uri, own), task["run"]["title"].split()[0]
    made = manifest(spec, title, training, asked, number, nodes.labels, own)
    name = running or made["metadata"]["name"]
    adopt: Callable[[], None] = (lambda: client.adopt(name, own)) if running else (lambda: None)
    follower = follow.Follower(
        client,
        name,
        nodes.number,
        refused=lambda: raise_refusal(place),
        failure=lambda: _failure(place),
        adopt=adopt,
    )
    try:
        if not running:
            _create(client, place, task, made)
        print(f"{name}: {nodes.number} nodes, {nodes.processes} processes each", file=sys.stderr, flush=True)
        follower.wait()
    except (FileExistsError, follow.UnreachableError):
        raise
    except BaseException:
        _delete(client, name)
        raise
    _delete(client, name)


def _asked(place: Store, task: dict[str, Any], nodes: Nodes, own: Own) -> str:
    """Digest of what the nodes do and are; not of where they may run, which a queue says anew for every pod."""
    spec = specification(nodes, place.uri, dataclasses.replace(own, placement={}))
    return files.digest([task, spec, nodes.labels])


def _create(client: Client, place: Store, task: dict[str, Any], made: dict[str, Any]) -> None:
    for leftover in (REFUSAL, FAILURES):
        place.delete(leftover)
    place.write(TASK, json.dumps(task, indent=2, allow_nan=False).encode())
    client.create(made)


def _under_way(client: Client, training: str, asked: str) -> tuple[str, int]:
    """The TrainJob of this training that is under way ("" = none), and the number of the next attempt.

    Failed ones are removed, and so are those that were asked for otherwise. Pods that are still saving a checkpoint are
    waited for: two of them must not write to the same place.
    """
    deadline, highest = time.monotonic() + 2 * GRACE_SECONDS, 0
    while True:
        found = {job["metadata"]["name"]: job for job in client.of_training(training)}
        highest = max([highest, *(int(job["metadata"]["labels"][ATTEMPT_LABEL]) for job in found.values())])
        alive = [name for name, job in found.items() if not (is_leaving(job) or _has_failed(job))]
        fitting = [name for name in alive if found[name]["metadata"].get("annotations", {}).get(ASKED) == asked]
        if fitting or not found:
            if fitting:
                print(f"{fitting[0]} is under way: it is followed", file=sys.stderr, flush=True)
            return (fitting[0] if fitting else ""), highest + 1
        for name, job in found.items():
            if not is_leaving(job):
                reason = "trains the same in another way" if name in alive else "has failed"
                print(f"{name} {reason}: it is removed", file=sys.stderr, flush=True)
                client.delete(name)
        if time.monotonic() > deadline:
            raise RuntimeError(f"the pods of {', '.join(found)} do not end")
        time.sleep(follow.POLL_SECONDS)


def _has_failed(job: dict[str, Any]) -> bool:
    conditions = job.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Failed" and condition["status"] == "True" for condition in conditions)


def _delete(client: Client, name: str) -> None:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        client.delete(name)
    except (ApiException, HTTPError) as error:
        print(f"the TrainJob {name} could not be deleted: {type(error).__name__}", file=sys.stderr, flush=True)


def raise_refusal(place: Store) -> None:
    """Raises the `InputError` that a node has left, if one has and the store can be read."""
    for left in _left(place, REFUSAL):
        raise InputError(**json.loads(left))


def _failure(place: Store) -> str:
    """Returns a node's report of its failure, the one that tells the cause if any does."""
    left = [text.rstrip() for text in _left(place, FAILURES)]
    return next(filter(follow.is_cause, left), left[0] if left else "")


def _left(place: Store, key: str) -> list[str]:
    """Texts below a key; none where the store cannot be reached, which must not hide what happened to the training."""
    try:
        keys = [key] if place.exists(key) else [entry.key for entry in place.list(key)]
        return [place.read(name).decode("utf-8", errors="replace") for name in keys]
    except Exception as error:
        print(f"{place.uri_of(key)} cannot be read: {type(error).__name__}", file=sys.stderr, flush=True)
        return []


def _take_over(place: Store, draft: Path, log: Path) -> None:
    """Brings the result here; it stays in the store until the step's checkpoints are discarded."""
    if not place.exists(f"{RESULT}/{MANIFEST}"):
        raise RuntimeError(f"the training ended, but its result is not at {place.uri_of(RESULT)}")
    with tempfile.TemporaryDirectory(dir=draft, prefix=".result-") as scratch:
        place.download(RESULT, scratch)
        for path in (Path(scratch) / DRAFT).iterdir():
            shutil.move(path, draft / path.name)
        shutil.move(Path(scratch) / LOG, log)
