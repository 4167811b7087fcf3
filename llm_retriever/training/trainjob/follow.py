"""Follows a TrainJob to its end: prints the first node's log, reports pods in trouble, raises what made it fail.

A node that is lost ends the training: the others would wait for it, and one that is started again alone would not find them.
The step's own retry starts all of them anew, from the last checkpoint.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.processes.crashes import LOST_PEER, Crash, ProcessFailedError, crash_of
from llm_retriever.training.trainjob import pods as states
from llm_retriever.training.trainjob.client import Client, message_of
from llm_retriever.training.trainjob.pods import HEALING_SECONDS

POLL_SECONDS = 5.0
UNREACHABLE_SECONDS = 900
"""How long the API may be away before the step gives up; the training itself does not need it."""
SETTLING_SECONDS = 60
"""How long the cause of a failure is waited for: the nodes that only lost their peer may end before the one that failed."""
LAST_LINES = 30
KILLED = 128
"""The exit code of a program that a signal has ended is this and the signal's number."""


class UnreachableError(RuntimeError):
    """The cluster cannot be asked any more; the training may well go on."""

    crash = Crash.PASSING


def is_cause(text: str) -> bool:
    """Whether a text about a failure tells more than that another node is gone."""
    return bool(text) and not LOST_PEER.search(text)


def _failed(text: str, pods: list[dict[str, Any]]) -> ProcessFailedError:
    """The failure of a training; it may pass where a node was killed, or tells of a lost device, process or connection."""
    killed = any(code > KILLED for pod in pods for code in states.exits(pod))
    passes = killed or crash_of(RuntimeError(text)) is Crash.PASSING
    return ProcessFailedError(text, Crash.PASSING if passes else Crash.LASTING)


class Follower:
    """Follows one TrainJob.

    Args:
        client: The cluster.
        name: Name of the TrainJob.
        number: Number of its nodes.
        refused: Raises the InputError that a node has left, if any.
        failure: Returns a node's report of its failure; "" = none.
        adopt: Makes the TrainJob this step's; called until it succeeds.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        number: int,
        *,
        refused: Callable[[], None],
        failure: Callable[[], str] = lambda: "",
        adopt: Callable[[], None] = lambda: None,
    ) -> None:
        self._client, self._name, self._number = client, name, number
        self._refused, self._failure = refused, failure
        self._adopt: Callable[[], None] | None = adopt
        self._since: dict[tuple[str, str], float] = {}
        self._missing: float | None = None
        self._failed: tuple[float, str] | None = None
        self._pods: dict[str, str] = {}
        self._told: set[str] = set()
        self._lines: list[str] = []
        self._read: float | None = None
        self._reached = time.monotonic()

    def wait(self) -> None:
        """Returns when the TrainJob is complete.

        Raises:
            InputError: A node refused its input, or cannot be started as it is asked for.
            UnreachableError: The API has not answered for too long.
            ProcessFailedError: It or a node failed, with the last lines of that node's log.
            RuntimeError: It was deleted.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        while True:
            self._try(self._take, "the TrainJob is not this step's yet")
            try:
                job, pods = self._client.get(self._name), self._client.pods(self._name)
                self._reached = time.monotonic()
            except (ApiException, HTTPError) as error:
                if getattr(error, "status", None) == 404:
                    raise RuntimeError(f"the TrainJob {self._name} was deleted by someone else") from None
                self._endure(message_of(error))
            else:
                self._try(functools.partial(self._show_log, pods), "the first node's log cannot be read")
                if self._look(job, pods):
                    return
            time.sleep(POLL_SECONDS)

    def _look(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> bool:
        """Whether the TrainJob is complete; raises where it will not be."""
        conditions = {c["type"]: c for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
        if "Complete" in conditions:
            return True
        staying = [pod for pod in pods if not states.is_leaving(pod)]
        suspended = conditions.get("Suspended") if "Failed" not in conditions else None
        self._examine(pods)
        if suspended:
            self._tell(f"{self._name} waits: {suspended.get('message', '')}")
            self._failed = self._missing = None
        else:
            self._note_failure(conditions.get("Failed"), staying)
        if suspended or not staying:
            self._pods.clear()
        if self._failed:
            self._conclude(*self._failed, pods)
        elif not suspended:
            self._check_not_replaced(staying)
            self._check_all_created(pods)
        return False

    def _take(self) -> None:
        if self._adopt:
            self._adopt()
            self._adopt = None

    def _try(self, action: Callable[[], None], problem: str) -> None:
        """Runs an action that a later poll can repeat; an API failure is only reported."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            action()
        except (ApiException, HTTPError) as error:
            self._tell(f"{problem}: {message_of(error)}")

    def _endure(self, message: str) -> None:
        if time.monotonic() - self._reached > UNREACHABLE_SECONDS:
            raise UnreachableError(f"the Kubernetes API has not answered for too long: {message}")
        self._tell(f"the Kubernetes API does not answer: {message}")

    def _examine(self, pods: list[dict[str, Any]]) -> None:
        """Reports what is wrong with the nodes, and gives up on what does not heal."""
        seen, now = set(), time.monotonic()
        for pod in pods:
            node = f"node {states.index(pod)}"
            if EXIT_BAD_INPUT in states.exits(pod):
                self._refused()
            for trouble, message in states.troubles(pod):
                key = (pod["metadata"]["name"], trouble.problem)
                seen.add(key)
                words = f"{node}: {trouble.problem}" + (f" ({message})" if message else "")
                self._tell(words)
                if now - self._since.setdefault(key, now) >= trouble.patience:
                    raise InputError(words, field=trouble.field, hint=trouble.hint)
        self._since = {key: since for key, since in self._since.items() if key in seen}

    def _note_failure(self, failed: dict[str, str] | None, staying: list[dict[str, Any]]) -> None:
        """Remembers when and how the training was first seen to have failed."""
        if self._failed:
            return
        words = [
            f"node {states.index(pod)} ended with exit code {code}" for pod in staying for code in states.exits(pod)
        ]
        if failed:
            reason = f"{failed.get('reason', '')}: {failed.get('message', '')}"
            words.insert(0, f"the TrainJob {self._name} failed ({reason})")
        if words:
            self._failed = (time.monotonic(), words[0])

    def _conclude(self, since: float, words: str, pods: list[dict[str, Any]]) -> None:
        """Raises what made the training fail, as soon as that is known or cannot be waited for any longer."""
        self._refused()
        ended = all(states.has_ended(pod) for pod in pods)
        if ended or is_cause(self._failure()) or time.monotonic() - since > SETTLING_SECONDS:
            self._refused()
            raise _failed(f"{words}{self._last_words(pods)}", pods)

    def _check_not_replaced(self, staying: list[dict[str, Any]]) -> None:
        """Gives up when a node was replaced while others went on."""
        names = {states.index(pod): pod["metadata"]["name"] for pod in staying}
        known = {index: name for index, name in names.items() if index in self._pods}
        replaced = [index for index, name in known.items() if name != self._pods[index]]
        if replaced and len(replaced) < len(known):
            raise ProcessFailedError(f"node {replaced[0]} was lost")
        self._pods = names if replaced else self._pods | names

    def _check_all_created(self, pods: list[dict[str, Any]]) -> None:
        """Reports why pods are not created, and gives up where that does not heal: a quota, an admission, no controller."""
        now = time.monotonic()
        if len(pods) >= self._number:
            self._missing = None
            return
        self._missing = self._missing or now
        warnings: list[str] = []
        self._try(lambda: warnings.extend(self._client.warnings(self._name)), "events cannot be read")
        for warning in warnings:
            self._tell(f"{self._name}: {warning}")
        if now - self._missing >= HEALING_SECONDS:
            said = f" ({warnings[-1]})" if warnings else ", and no event says why"
            raise InputError(
                f"the cluster has made {len(pods)} of {self._number} pods{said}",
                field="nodes",
                hint="ask for fewer or smaller nodes, or have the namespace's quota or policy changed",
            )

    def _tell(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            print(line, file=sys.stderr, flush=True)

    def _show_log(self, pods: list[dict[str, Any]]) -> None:
        """Prints what is new in the first node's log: each reading overlaps the one before."""
        first = [pod for pod in pods if states.index(pod) == "0"]
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
        """What a node has left in the store, or the end of a failed pod's log; the first that tells a cause."""
        left = self._failure()
        words = [f":\n{left}"] if left else []
        for text in self._logs(pods) if not is_cause(left) else ():
            if is_cause(text):
                return text
            words.append(text)
        return words[0] if words else ""

    def _logs(self, pods: list[dict[str, Any]]) -> Iterator[str]:
        """The ends of the logs of failed pods, of the one that failed first at first."""
        ended = [
            (str(end.get("finishedAt") or ""), pod["metadata"]["name"])
            for pod in pods
            for end in states.terminations(pod)
            if states.is_failure(end)
        ]
        for _, name in sorted(ended):
            texts: list[str] = []
            for options in ({}, {"previous": True}):
                read = functools.partial(self._client.log, name, tail_lines=LAST_LINES, **options)
                self._try(lambda: texts.append(read()), f"the log of {name} cannot be read")  # noqa: B023
            text = next(filter(None, texts), "")
            if text:
                yield f"; the end of the log of {name}:\n{text.rstrip()}"
