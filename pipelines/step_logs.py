"""Picks the one line that matters of a step's log: its complaint, or its progress."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import PurePosixPath

from llm_retriever.errors import InputError
from llm_retriever.stores.opening import Store, open_store
from pipelines.run_status import Failure, RunStatus
from pipelines.workflow_nodes import LOGS

MOST_BYTES = 64 * 2**20
LONGEST_LINE = 400
# The launcher and the driver log as Kubernetes does: `E0821 14:03:07.123456       1 main.go:79] text`.
_KUBERNETES = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [^\]]+\] ?")
_PLAIN_EXIT = re.compile(r"(main: )?Error \(exit code [12]\)$")


def error_line(log: str, program: str) -> str:
    """Last line that a step's program printed about itself, else the last line of any kind; empty = there is none.

    Args:
        log: Log of its container; the launcher's own lines are left out.
        program: Name that such a line begins with; empty = the log of another program.
    """
    own = [line for line in _lines(log) if program and line.startswith(f"{program}: ")]
    launcher = [_KUBERNETES.sub("", line, count=1) for line in log.splitlines() if _KUBERNETES.match(line)]
    return _shortened((own or _lines(log) or launcher or [""])[-1])


def progress_line(log: str) -> str:
    """Last line that a step printed; empty = it has printed none."""
    return _shortened((_lines(log) or [""])[-1])


def _lines(log: str) -> list[str]:
    """Lines of the program itself; of a line that a terminal would redraw, its last state."""
    shown = [line.rstrip().rsplit("\r", 1)[-1].strip() for line in log.split("\n")]
    return [line for line in shown if line and not _KUBERNETES.match(line)]


def _shortened(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + " …"


def served_log(answer: str) -> str:
    """Log as the API serves it; empty where its end says that it cannot be served."""
    start = answer.rfind('{"error_message":')
    if start < 0:
        return answer
    try:
        json.loads(answer[start:])
    except ValueError:
        return answer
    return answer[:start]


def explained(failure: Failure, served: Callable[[str], str], status: RunStatus, root: str) -> list[str]:
    """Explains a failed task: why it failed, and where its whole log is.

    Args:
        failure: The task.
        served: Gives the log of a pod; empty where the API does not.
        status: Status of the run.
        root: Pipeline root; empty where unknown.
    """
    log, place, obstacle = (served(failure.pod) if failure.pod else ""), _log_place(failure, status, root), ""
    line = error_line(log, failure.program)
    if place:
        try:
            place, stored = stored_log(place)
            line = line or error_line(stored, failure.program)
        except (InputError, OSError) as error:
            obstacle = "" if line else f" (not read: {error})"
    reason = failure.message if not _PLAIN_EXIT.fullmatch(failure.message) else ""
    parts = [f"  {part}" for part in (line, reason) if part] or [f"  {failure.message or 'no message is known'}"]
    where = [f"kubectl logs -n {status.namespace} {failure.pod} -c main"] if failure.pod else []
    where += [place + obstacle] if place else []
    missing = "  its log lies below the pipeline root: give --pipeline-root URI"
    return [*parts, *[f"  all of it: {text}" for text in where]] if where else [*parts, missing]


def _log_place(failure: Failure, status: RunStatus, root: str) -> str:
    if failure.logs:
        return failure.logs
    return f"{run_place(status, root)}/{failure.keys[-1]}" if root and status.pipeline and failure.keys else ""


def run_place(status: RunStatus, root: str) -> str:
    """Place of a run's artifacts: ROOT/PIPELINE/RUN, and below it TASK/EXECUTION/ARTIFACT."""
    return f"{root.rstrip('/')}/{status.pipeline}/{status.id}"


def stored_log(place: str) -> tuple[str, str]:
    """URI and text of the latest log at a place of the artifact store.

    Args:
        place: Of one execution, `…/EXECUTION/executor-logs`, whose attempts are told apart by a number behind it; or of
            a task, with any number of executions.

    Raises:
        InputError: There is none, it is too large, or the store cannot be read.
    """
    store = open_store(place.rsplit("/", 1)[0] if place.endswith(f"/{LOGS}") else place)
    logs = [entry for entry in store.list() if PurePosixPath(entry.key).name.startswith(LOGS)]
    if not logs:
        raise InputError("there is no log", file=place)
    latest = max(logs, key=lambda entry: (entry.modified, len(entry.key), entry.key))
    if latest.size > MOST_BYTES:
        raise InputError("the log is too large to be read here", file=store.uri_of(latest.key))
    return store.uri_of(latest.key), store.read(latest.key).decode("utf-8", "replace")


def tasks_with_outputs(place: str) -> set[str]:
    """Keys of a run's tasks that left anything but a log in the artifact store.

    Args:
        place: URI of the run's artifacts.

    Raises:
        InputError: The store cannot be read.
    """
    store: Store = open_store(place)
    parts = [entry.key.split("/") for entry in store.list()]
    return {task for task, *rest in parts if len(rest) > 1 and not rest[1].startswith(LOGS)}
