"""A Kubeflow cluster, through KFP's own client: submit a pipeline, follow a run, create or replace a schedule."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError

FINISHED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED", "ERROR")
CRON_FIELDS = 6
PAGE = 100


@dataclass(frozen=True)
class Address:
    """Where the cluster's Pipelines API is, and who asks.

    Attributes:
        endpoint: URL; empty = `KF_PIPELINES_ENDPOINT`, or the service inside the cluster.
        namespace: Profile namespace of a multi-user installation; empty = single-user.
        token: File with a bearer token; empty = the pod's own, or none.
        certificate: File with the certificate authority of the endpoint; empty = the system's.
    """

    endpoint: str = ""
    namespace: str = ""
    token: str = ""
    certificate: str = ""


@dataclass(frozen=True)
class TaskState:
    """One task of a run: its id, its name, KFP's word for its state, and its seconds (None = it has not ended)."""

    id: str
    name: str
    state: str
    seconds: float | None


class Cluster:
    """A connection to a cluster.

    Args:
        address: Where it is.

    Raises:
        InputError: It does not answer.
    """

    def __init__(self, address: Address) -> None:
        import kfp

        self.namespace = address.namespace or None
        token = Path(address.token).read_text().strip() if address.token else None
        with _refusals(address.endpoint), _quiet():
            self.client = kfp.Client(
                host=address.endpoint or None,
                namespace=address.namespace or "kubeflow",
                existing_token=token,
                ssl_ca_cert=address.certificate or None,
            )
        self.endpoint = address.endpoint

    def submit(
        self,
        package: Path,
        arguments: Mapping[str, Any],
        *,
        experiment: str,
        name: str,
        pipeline_root: str = "",
        service_account: str = "",
        caching: bool = True,
    ) -> str:
        """Starts a run of a compiled pipeline.

        Args:
            package: The YAML.
            arguments: Parameters that differ from the YAML's defaults, typed.
            experiment: Name of the experiment; made when there is none.
            name: Name of the run.
            pipeline_root: Where artifacts go; empty = the namespace's default.
            service_account: That steps run as; empty = the installation's default.
            caching: False = every step anew (but those in loops, which KFP does not reach from here).

        Returns:
            Id of the run.
        """
        with _refusals(self.endpoint), _quiet():
            run = self.client.create_run_from_pipeline_package(
                str(package),
                arguments=dict(arguments),
                run_name=name,
                experiment_name=experiment,
                namespace=self.namespace,
                pipeline_root=pipeline_root or None,
                enable_caching=None if caching else False,
                service_account=service_account or None,
            )
        return str(run.run_id)

    def schedule(
        self,
        package: Path,
        arguments: Mapping[str, Any],
        *,
        experiment: str,
        name: str,
        cron: str = "",
        every_seconds: int = 0,
        pipeline_root: str = "",
        service_account: str = "",
    ) -> tuple[str, int]:
        """Creates a recurring run, enabled, one at a time and without catching up; those of the same name are replaced.

        The new one is created before the old ones go, so that a refusal leaves the schedule as it was.

        Returns:
            Id of the recurring run, and how many it replaced.

        Raises:
            InputError: The cron expression has not six fields, or the cluster refuses.
        """
        check_trigger(cron, every_seconds)
        with _refusals(self.endpoint), _quiet():
            owner = self.client.create_experiment(experiment, namespace=self.namespace).experiment_id
            before = [job.recurring_run_id for job in self._recurring(owner) if job.display_name == name]
            created = self.client.create_recurring_run(
                owner,
                name,
                cron_expression=cron or None,
                interval_second=every_seconds or None,
                max_concurrency=1,
                no_catchup=True,
                params=dict(arguments),
                pipeline_package_path=str(package),
                enabled=True,
                pipeline_root=pipeline_root or None,
                service_account=service_account or None,
            )
            for job in before:
                self.client.delete_recurring_run(job)
        return str(created.recurring_run_id), len(before)

    def _recurring(self, experiment: str) -> Iterator[Any]:
        page = ""
        while True:
            answer = self.client.list_recurring_runs(
                page_token=page, page_size=PAGE, experiment_id=experiment, namespace=self.namespace
            )
            yield from answer.recurring_runs or []
            page = answer.next_page_token or ""
            if not page:
                return

    def runs(self, count: int = 10) -> list[tuple[str, str, str]]:
        """The latest runs: id, state and name."""
        with _refusals(self.endpoint), _quiet():
            answer = self.client.list_runs(page_size=count, sort_by="created_at desc", namespace=self.namespace)
        return [(run.run_id, run.state or "PENDING", run.display_name) for run in answer.runs or []]

    def run(self, run_id: str) -> tuple[str, list[TaskState]]:
        """State of a run, and its tasks in the order in which they started."""
        with _refusals(self.endpoint), _quiet():
            found = self.client.get_run(run_id)
        tasks = (found.run_details.task_details if found.run_details else None) or []
        shown = [task for task in tasks if task.display_name and not task.display_name.endswith("-driver")]
        shown.sort(key=lambda task: str(task.start_time or "9"))
        states = [TaskState(t.task_id or "", t.display_name, t.state or "PENDING", _seconds(t)) for t in shown]
        return found.state or "PENDING", states

    def wait(self, run_id: str, seconds: float = 10.0) -> Iterator[TaskState | str]:
        """Follows a run: yields every task whose state has changed, and last the state of the run."""
        told: dict[str, str] = {}
        while True:
            state, tasks = self.run(run_id)
            for task in tasks:
                if told.get(task.id) != task.state:
                    told[task.id] = task.state
                    yield task
            if state in FINISHED:
                yield state
                return
            time.sleep(seconds)


def check_trigger(cron: str, every_seconds: int) -> None:
    """Refuses a trigger that KFP would take and misunderstand: its cron has six fields, the first being seconds.

    Raises:
        InputError: Both or neither are given, or the expression has not six fields.
    """
    if bool(cron) == bool(every_seconds):
        raise InputError("give either a cron expression or an interval", field="--cron", mend='--cron "0 0 2 * * *"')
    if cron and len(cron.split()) != CRON_FIELDS:
        raise InputError(
            f"{cron!r} has {len(cron.split())} fields; Kubeflow's cron has six, the first being seconds",
            field="--cron",
            mend='for every night at two: "0 0 2 * * *"',
        )


def _seconds(task: Any) -> float | None:
    if not task.start_time or not task.end_time or task.end_time.year < 2000:
        return None
    return float((task.end_time - task.start_time).total_seconds())


@contextlib.contextmanager
def _refusals(endpoint: str) -> Iterator[None]:
    """Turns what the client raises into one line; what the server said is shown, but no header of the request."""
    import kfp_server_api
    import urllib3

    where = endpoint or "KF_PIPELINES_ENDPOINT"
    try:
        yield
    except kfp_server_api.ApiException as error:
        said = re.search(r'"(?:message|error_message|error)"\s*:\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
        reason = said[1] if said else error.reason
        raise InputError(f"Kubeflow answers {error.status}: {reason}", field="--endpoint", file=where) from None
    except (urllib3.exceptions.HTTPError, TimeoutError, OSError) as error:
        raise InputError(
            f"no answer ({type(error).__name__})",
            file=where,
            field="--endpoint",
            mend="give the URL of the Pipelines API, for instance of kubectl port-forward svc/ml-pipeline 8888",
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The client warns of its own version; the links that it prints go where progress goes, so that ids can be piped on."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
