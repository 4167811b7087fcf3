"""Following a TrainJob to its end: the first node's log, what ails the pods, and how it came out.

A node that is lost ends the training: the others would wait for it, and one that is started again alone would not find them.
The step's own retry starts all of them anew, from the last checkpoint.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.trainjob.client import Client, message_of

POLL_SECONDS = 5.0
UNREACHABLE_SECONDS = 900
"""How long the API may be away before the step gives up; the training itself does not need it."""
LAST_LINES = 30
INDEX = "batch.kubernetes.io/job-completion-index"
STOPPED = 143
_HEALING_SECONDS = 600


class Trouble(NamedTuple):
    """What a pod's state means for the one who started the training.

    Attributes:
        problem: What is wrong with the node.
        field: The setting at fault.
        mend: What to do about it.
        patience: Seconds that it may last before the step gives up; infinite = it is only told.
    """

    problem: str
    field: str
    mend: str
    patience: float


_NO_IMAGE = Trouble(
    "its image cannot be pulled", "node_image", "correct the image, or the pull secrets", _HEALING_SECONDS
)
_NO_CONTAINER = Trouble(
    "its container cannot be made", "node_runtime", "correct the runtime or what it refers to", _HEALING_SECONDS
)
TROUBLES = {
    "ErrImagePull": _NO_IMAGE,
    "ImagePullBackOff": _NO_IMAGE,
    "InvalidImageName": _NO_IMAGE._replace(patience=0),
    "CreateContainerConfigError": _NO_CONTAINER,
    "CreateContainerError": _NO_CONTAINER,
    "RunContainerError": _NO_CONTAINER,
    "OOMKilled": Trouble("it ran out of memory", "node_memory", "raise it, or lower micro_batch_size", 0),
    "Evicted": Trouble("it was evicted from its machine", "node_memory", "", math.inf),
    "Unschedulable": Trouble("no machine has room for it yet", "nodes", "", math.inf),
}
"""By the reason that Kubernetes gives."""


class Follower:
    """Follows one TrainJob.

    Args:
        client: The cluster.
        name: Of the TrainJob.
        refused: Raises what a node has found wrong with its input, if any.
        failure: What a node has left about its failure; "" = nothing.
    """

    def __init__(
        self, client: Client, name: str, *, refused: Callable[[], None], failure: Callable[[], str] = lambda: ""
    ) -> None:
        self._client, self._name, self._refused, self._failure = client, name, refused, failure
        self._since: dict[tuple[str, str], float] = {}
        self._pods: dict[str, str] = {}
        self._told: set[str] = set()
        self._lines: list[str] = []
        self._read: float | None = None
        self._reached = time.monotonic()

    def wait(self) -> None:
        """Returns when the TrainJob is complete.

        Raises:
            InputError: A node refused its input, or cannot be started as it is asked for.
            RuntimeError: It or a node failed, with the last lines of that node's log; or it was deleted.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        while True:
            try:
                job, pods = self._client.get(self._name), self._client.pods(self._name)
                self._show_log(pods)
                self._reached = time.monotonic()
            except ApiException as error:
                if error.status == 404:
                    raise RuntimeError(f"the TrainJob {self._name} was deleted by someone else") from None
                self._endure(message_of(error))
            except HTTPError as error:
                self._endure(type(error).__name__)
            else:
                if self._ended(job, pods):
                    return
                self._examine(pods)
                self._count(pods)
            time.sleep(POLL_SECONDS)

    def _endure(self, message: str) -> None:
        if time.monotonic() - self._reached > UNREACHABLE_SECONDS:
            raise RuntimeError(f"the Kubernetes API has not answered for too long: {message}")
        self._tell(f"the Kubernetes API does not answer: {message}")

    def _ended(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> bool:
        conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
        if "Suspended" in conditions:
            self._tell(f"{self._name} waits: {conditions['Suspended'].get('message', '')}")
        if "Failed" in conditions:
            self._refused()
            self._examine(pods)
            failed = conditions["Failed"]
            reason = f"{failed.get('reason', '')}: {failed.get('message', '')}"
            raise RuntimeError(f"the TrainJob {self._name} failed ({reason}){self._last_words(pods)}")
        return "Complete" in conditions

    def _examine(self, pods: list[dict[str, Any]]) -> None:
        """Tells what ails the nodes, and gives up where it does not heal."""
        seen, now = set(), time.monotonic()
        for pod in pods:
            node = f"node {_index(pod)}"
            if EXIT_BAD_INPUT in _exits(pod):
                self._refused()
            for trouble, message in _troubles(pod):
                key = (pod["metadata"]["name"], trouble.problem)
                seen.add(key)
                self._tell(f"{node}: {trouble.problem}" + (f" ({message})" if message else ""))
                if now - self._since.setdefault(key, now) >= trouble.patience:
                    words = f"{node}: {trouble.problem}" + (f" ({message})" if message else "")
                    raise InputError(words, field=trouble.field, mend=trouble.mend)
        self._since = {key: since for key, since in self._since.items() if key in seen}

    def _count(self, pods: list[dict[str, Any]]) -> None:
        """Gives up when a node has failed, or was replaced while others went on."""
        staying = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        for pod in staying:
            for code in _exits(pod):
                raise RuntimeError(f"node {_index(pod)} ended with exit code {code}{self._last_words(pods)}")
        names = {_index(pod): pod["metadata"]["name"] for pod in staying}
        known = {index: name for index, name in names.items() if index in self._pods}
        replaced = [index for index, name in known.items() if name != self._pods[index]]
        if replaced and len(replaced) < len(known):
            raise RuntimeError(f"node {replaced[0]} was lost")
        self._pods |= names

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            print(line, file=sys.stderr, flush=True)

    def _show_log(self, pods: list[dict[str, Any]]) -> None:
        """Prints what is new in the first node's log: each reading overlaps the one before."""
        first = [pod for pod in pods if _index(pod) == "0"]
        if not first:
            return
        now = time.monotonic()
        window = {} if self._read is None else {"since_seconds": math.ceil(now - self._read) + 10}
        text = self._client.log(first[-1]["metadata"]["name"], timestamps=True, **window)
        if not text:
            return
        lines, known = text.splitlines(), set(self._lines)
        for line in lines:
            if line not in known:
                print(line.partition(" ")[2], flush=True)
        self._lines, self._read = lines, now

    def _last_words(self, pods: list[dict[str, Any]]) -> str:
        """The end of the log of the pod that failed first, or what a node has left in the store."""
        ended = [(str(e.get("finishedAt") or ""), pod) for pod in pods for e in _terminations(pod) if _is_failure(e)]
        for _, pod in sorted(ended, key=lambda pair: pair[0]):
            name = pod["metadata"]["name"]
            text = self._client.log(name, tail_lines=LAST_LINES)
            text = text or self._client.log(name, tail_lines=LAST_LINES, previous=True)
            if text:
                return f"; the end of the log of {name}:\n{text.rstrip()}"
        left = self._failure()
        return f":\n{left}" if left else ""


def _index(pod: dict[str, Any]) -> str:
    metadata = pod["metadata"]
    return str({**metadata.get("annotations", {}), **metadata.get("labels", {})}.get(INDEX, "?"))


def _statuses(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return list(pod.get("status", {}).get("containerStatuses") or [])


def _terminations(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How a pod's containers ended, now or before their last start."""
    for status in _statuses(pod):
        for state in ("state", "lastState"):
            ended = (status.get(state) or {}).get("terminated")
            if ended:
                yield ended


def _exits(pod: dict[str, Any]) -> list[int]:
    """Exit codes of containers that have not ended well."""
    return [ended["exitCode"] for ended in _terminations(pod) if ended["exitCode"]]


def _is_failure(ended: dict[str, Any]) -> bool:
    return ended["exitCode"] not in (0, STOPPED)


def _troubles(pod: dict[str, Any]) -> Iterator[tuple[Trouble, str]]:
    for reason, message in _reasons(pod):
        if reason in TROUBLES:
            yield TROUBLES[reason], message


def _reasons(pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every reason that Kubernetes gives for the state of a pod, and its explanation."""
    status = pod.get("status", {})
    yield status.get("reason", ""), status.get("message", "")
    for condition in status.get("conditions") or []:
        if condition.get("status") == "False":
            yield condition.get("reason", ""), condition.get("message", "")
    for container in _statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        yield waiting.get("reason", ""), waiting.get("message", "")
    for ended in _terminations(pod):
        yield ended.get("reason", ""), ended.get("message", "")
