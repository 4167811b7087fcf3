"""Shows a run on a cluster to people: its tasks, the news while it runs, and at its end what failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from llm_retriever.errors import InputError
from llm_retriever.progress import seconds_as_text
from pipelines import step_logs
from pipelines.refusals import UnreachableError
from pipelines.run_status import (
    CACHED,
    FINISHED,
    RUN_STATES,
    RUNNING,
    WAITING,
    RunStatus,
    TaskStatus,
    summary,
    with_outputs,
)

if TYPE_CHECKING:
    from pipelines.cluster import Cluster

EXIT_INTERRUPTED = 130
OPEN = (RUNNING, WAITING)
POLL_SECONDS = 10.0
PROGRESS_SECONDS = 60.0
PATIENCE_SECONDS = 1800.0
"""How long a server may be away before a follower gives up: an upgrade of the cluster takes minutes."""


def show(cluster: Cluster, run_id: str, root: str) -> int:
    """Prints one run: a line a task, and at its end what failed; returns 1 for a run that did not succeed.

    Args:
        cluster: Where it is.
        run_id: Its id.
        root: Pipeline root, where its artifacts are not where the run says; empty = there.
    """
    status = cluster.run(run_id)
    print(heading(cluster, status))
    return _print(cluster, status, root)


def follow(cluster: Cluster, run_id: str, root: str) -> int:
    """Prints the news of a run until its end, and then all of it; returns 0 when it succeeded, 1 when not.

    A server that is away is asked again; Ctrl-C ends the watching and not the run.

    Args:
        cluster: Where it is.
        run_id: Its id.
        root: Pipeline root, as for `show`.
    """
    try:
        status = _patiently(cluster, run_id)
        print(heading(cluster, status), flush=True)
        news = News(cluster)
        while status.state not in FINISHED:
            for text in news.of(status):
                print(text, flush=True)
            time.sleep(POLL_SECONDS)
            status = _patiently(cluster, run_id)
        print("\n".join(news.of(status)) if news.told else "", flush=True)
        return _print(cluster, status, root)
    except KeyboardInterrupt:
        print(f"\nno longer watched; the run goes on: llm-retriever status {run_id} --wait", file=sys.stderr)
        return EXIT_INTERRUPTED


class News:
    """News of a run since the last look."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.told: dict[str, tuple[str, int, str]] = {}
        self._shown: dict[str, float] = {}

    def of(self, status: RunStatus) -> Iterator[str]:
        """Lines for every task that has changed, and once a minute for every one that runs or waits for its pod."""
        for task in status.tasks:
            key = "/".join(task.task.path)
            now, before = (task.state, task.done, task.note), self.told.get(key)
            self.told[key] = now
            if now != before and (before or task.state != WAITING or task.note):
                yield self._line(key, task)
            elif task.started is not None and task.state in OPEN and self._is_due(key):
                log = self.cluster.log(status.id, task.pod) if task.pod else ""
                yield self._line(key, task, step_logs.progress_line(log))

    def _is_due(self, key: str) -> bool:
        return time.monotonic() - self._shown.get(key, 0.0) >= PROGRESS_SECONDS

    def _line(self, key: str, task: TaskStatus, progress: str = "") -> str:
        self._shown[key] = time.monotonic()
        return line(task, progress)


def _patiently(cluster: Cluster, run_id: str) -> RunStatus:
    """Asks for the run until there is an answer; says so while there is none."""
    since = time.monotonic()
    while True:
        try:
            return cluster.run(run_id)
        except UnreachableError as error:
            away = time.monotonic() - since
            if away > PATIENCE_SECONDS:
                raise
            print(f"{error.problem} for {seconds_as_text(away)}; the run goes on, asking again", file=sys.stderr)
            time.sleep(POLL_SECONDS)


def _completed(status: RunStatus, root: str) -> RunStatus:
    """Completes a run whose list of tasks is lost by what its artifacts tell."""
    if not status.lost:
        return status
    place = step_logs.run_place(status, root or status.root)
    if not (root or status.root) or not status.pipeline:
        return with_outputs(status, None, "give --pipeline-root URI to see which of them left outputs")
    try:
        found = step_logs.tasks_with_outputs(place)
        return with_outputs(status, found, f"what is said of them is what lies in {place}")
    except InputError as error:
        return with_outputs(status, None, f"their outputs cannot be seen: {error}")


def heading(cluster: Cluster, status: RunStatus) -> str:
    """Formats name of a run, its start, and the schedule that started it."""
    by = f", by the schedule {cluster.schedule_name(status.schedule)}" if status.schedule else ""
    return f"{status.name}, started {as_time(status.started)}{by}"


def table(tasks: list[TaskStatus]) -> list[str]:
    """Formats one line a task, in columns."""
    return [line(task, width=max(len(task.label) for task in tasks)) for task in tasks]


def line(task: TaskStatus, progress: str = "", width: int = 28) -> str:
    """Formats a task, its state, how long it has taken and what is noted about it."""
    took = seconds_as_text(_seconds_taken(task)) if _is_timed(task) else ""
    notes = "; ".join(text for text in (task.note, progress) if text)
    return f"  {task.label:<{width}}  {task.state:<11}  {took:>7}  {notes}".rstrip()


def _seconds_taken(task: TaskStatus) -> float:
    return max(0.0, (task.finished or time.time()) - (task.started or 0.0))


def _is_timed(task: TaskStatus) -> bool:
    return task.started is not None and task.state != CACHED and (task.finished is not None or task.state in OPEN)


def _print(cluster: Cluster, status: RunStatus, root: str) -> int:
    status = _completed(status, root)
    for text in (*table(status.tasks), *_ending(cluster, status, root)):
        print(text, flush=True)
    return int(status.state in FINISHED and status.state != "succeeded")


def _ending(cluster: Cluster, status: RunStatus, root: str) -> Iterator[str]:
    if status.remark:
        yield f"note: {status.remark}"
    took = f" after {seconds_as_text(status.finished - status.started)}" if status.finished and status.started else ""
    yield f"{status.state}{took}: {summary(status.tasks)}"
    if status.state in FINISHED and not status.failures and status.message and status.state != "succeeded":
        yield f"  {status.message}"
    for failure in status.failures:
        yield f"{failure.label} failed:"
        yield from step_logs.explained(failure, lambda pod: cluster.log(status.id, pod), status, root or status.root)


def list_runs(cluster: Cluster) -> None:
    """Prints the latest runs: id, state, start, duration, name, and the schedule that started them."""
    schedules: dict[str, str] = {}
    for run in cluster.runs():
        by = run.recurring_run_id
        if by and by not in schedules:
            schedules[by] = cluster.schedule_name(by)
        state = RUN_STATES.get(run.state or "", WAITING)
        start, end = _seconds(run.created_at), _seconds(run.finished_at)
        took = seconds_as_text((end or time.time()) - start) if start else ""
        name = f"{run.display_name} (schedule {schedules[by]})" if by else run.display_name
        print(f"{run.run_id}  {state:<9}  {as_time(start)}  {took:>7}  {name}")


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment and moment.year > 1970 else None  # the API's 1970 is never


def as_time(seconds: float | None) -> str:
    """Formats a moment, in UTC, as the pods' logs do."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else "not yet".ljust(20)
