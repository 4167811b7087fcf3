"""Talks to a Kubeflow cluster, through KFP's own client: submits a pipeline, follows a run, keeps schedules."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import kfp_server_api

from llm_retriever.errors import InputError
from llm_retriever.progress import seconds_as_text
from pipelines.refusals import UnknownError, explained_refusals, quiet
from pipelines.run_status import RunStatus, run_status
from pipelines.step_logs import served_log

CRON_FIELDS = 6
PAGE = 100
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
MOST_LOG_CHARACTERS = 16_000_000


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
class Schedule:
    """A recurring run: its id, its name, when it starts a run, and whether it does."""

    id: str
    name: str
    trigger: str
    enabled: bool


class Cluster:
    """A connection to a cluster.

    Args:
        address: Where it is.

    Raises:
        InputError: It does not answer.
    """

    def __init__(self, address: Address) -> None:
        import kfp

        class PromptClient(kfp.Client):
            def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
                """Asks once: the original asks for 25 seconds, and then keeps to itself what was answered."""
                return self._healthz_api.healthz_service_get_healthz()

        self.namespace = address.namespace or None
        token = Path(address.token).read_text().strip() if address.token else None
        with explained_refusals(address.endpoint), quiet():
            self.client = PromptClient(
                host=address.endpoint or None,
                namespace=address.namespace or "kubeflow",
                existing_token=token,
                ssl_ca_cert=address.certificate or None,
            )
        self.endpoint = address.endpoint
        self._serves_manifests = True
        self._huge_logs: set[str] = set()
        self._specifications: dict[str, dict[str, Any]] = {}

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
        with explained_refusals(self.endpoint), quiet():
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
        with explained_refusals(self.endpoint), quiet():
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

    def schedules(self, experiment: str = "") -> list[Schedule]:
        """Lists the recurring runs of an experiment, or of the namespace; none where there is no such experiment."""
        with explained_refusals(self.endpoint), quiet():
            owner = self._experiment(experiment) if experiment else None
            schedules = [] if experiment and owner is None else list(self._recurring(owner))
        return [_schedule(job) for job in schedules]

    def remove_schedule(self, name: str, experiment: str) -> list[str]:
        """Removes all recurring runs of a name; runs that they have started stay.

        Returns:
            Their ids.

        Raises:
            InputError: There is none of this name.
        """
        known = self.schedules(experiment)
        ids = [job.id for job in known if job.name == name]
        if not ids:
            names = ", ".join(sorted({job.name for job in known})) or "none"
            hint = f"there are in the experiment {experiment}: {names}"
            raise InputError(f"no schedule is called {name!r}", field="--remove", hint=hint)
        for job in ids:
            # It may have gone since it was listed.
            with (
                contextlib.suppress(UnknownError),
                explained_refusals(self.endpoint, subject=f"schedule {job}"),
                quiet(),
            ):
                self.client.delete_recurring_run(job)
        return ids

    def _experiment(self, name: str) -> str | None:
        try:
            experiment = self.client.get_experiment(experiment_name=name, namespace=self.namespace)
        except ValueError:  # the client's way to say that there is none
            return None
        return str(experiment.experiment_id)

    def _recurring(self, experiment: str | None) -> Iterator[Any]:
        page = ""
        while True:
            answer = self.client.list_recurring_runs(
                page_token=page, page_size=PAGE, experiment_id=experiment, namespace=self.namespace
            )
            yield from answer.recurring_runs or []
            page = answer.next_page_token or ""
            if not page:
                return

    def schedule_name(self, recurring_run: str) -> str:
        """Name of a recurring run; where it has been removed, its id beside it."""
        try:
            with explained_refusals(self.endpoint, subject=f"schedule {recurring_run}"), quiet():
                return str(self.client.get_recurring_run(recurring_run).display_name)
        except UnknownError:
            return f"{recurring_run}, removed since"

    def runs(self, count: int = 10) -> list[Any]:
        """Lists the latest runs, as the client's objects."""
        with explained_refusals(self.endpoint), quiet():
            answer = self.client.list_runs(page_size=count, sort_by="created_at desc", namespace=self.namespace)
        return answer.runs or []

    def run(self, run_id: str) -> RunStatus:
        """Reads a run at this moment.

        Raises:
            UnknownError: There is no such run.
            UnreachableError: The server cannot be reached now.
        """
        with _of_run(self.endpoint, run_id), quiet():
            run = self._get(f"/apis/v2beta1/runs/{quote(run_id, safe='')}")
            manifest = self._manifest(run_id) if self._serves_manifests else None
        return run_status(run, self._specification(run), manifest)

    def _manifest(self, run_id: str) -> str | None:
        """Reads Argo's workflow of a run; an API without v1beta1 has it not, and is not asked again."""
        try:
            detail = self._get(f"/apis/v1beta1/runs/{quote(run_id, safe='')}")
        except kfp_server_api.ApiException as error:
            if error.status not in (400, 403, 404, 405, 500, 501):
                raise
            self._serves_manifests = False
            return None
        return (detail.get("pipeline_runtime") or {}).get("workflow_manifest")

    def _specification(self, run: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the compiled pipeline of a run, which the run holds or refers to; empty where it is gone."""
        specification = run.get("pipeline_spec") or {}
        version = run.get("pipeline_version_reference") or {}
        if not specification and version.get("pipeline_version_id"):
            key = f"{version.get('pipeline_id')}/versions/{version['pipeline_version_id']}"
            if key not in self._specifications:
                with contextlib.suppress(UnknownError), explained_refusals(self.endpoint, subject="version"):
                    answer = self._get(f"/apis/v2beta1/pipelines/{key}")
                    self._specifications[key] = answer.get("pipeline_spec") or {}
            specification = self._specifications.get(key, {})
        return dict(specification.get("pipeline_spec") or specification)

    def log(self, run_id: str, pod: str) -> str:
        """Reads the log of a pod's step, while the cluster keeps it; empty where the API does not give it, or it is huge."""
        if pod in self._huge_logs:
            return ""
        try:
            with explained_refusals(self.endpoint), quiet():
                text = self._read(f"/apis/v1alpha1/runs/{quote(run_id, safe='')}/nodes/{quote(pod, safe='')}/log")
        except (InputError, UnicodeDecodeError):
            return ""
        if len(text) > MOST_LOG_CHARACTERS:  # the API has no way to ask for its end alone
            self._huge_logs.add(pod)
        return served_log(text)

    def _get(self, path: str) -> dict[str, Any]:
        try:
            found = json.loads(self._read(path))
        except ValueError:
            found = None
        if not isinstance(found, dict):  # as of the page of a proxy that wants a login
            hint = "give the URL of the Pipelines API, and --token-file where it asks who you are"
            raise InputError("what answers is not Kubeflow", file=self.endpoint or None, field="--endpoint", hint=hint)
        return found

    def _read(self, path: str) -> str:
        # The client signs requests in all the ways that it knows, but has no method for these, nor a timeout.
        api = self.client._run_api.api_client
        api.call_api(path, "GET", auth_settings=["Bearer"], _request_timeout=(CONNECT_SECONDS, READ_SECONDS))
        return str(api.last_response.data)


def _of_run(endpoint: str, run_id: str) -> contextlib.AbstractContextManager[None]:
    hint = "llm-retriever status lists the latest ones"
    return explained_refusals(endpoint, subject=f"run {run_id}", field="RUN", hint=hint)


def _schedule(job: Any) -> Schedule:
    trigger = job.trigger
    cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else ""
    seconds = trigger.periodic_schedule.interval_second if trigger and trigger.periodic_schedule else None
    return Schedule(
        str(job.recurring_run_id),
        str(job.display_name),
        f'cron "{cron}"' if cron else f"every {seconds_as_text(float(seconds))}" if seconds else "no trigger",
        str(job.status or job.mode or "").upper().startswith("ENABLE"),
    )


def check_trigger(cron: str, every_seconds: int) -> None:
    """Raises InputError for a trigger that KFP would take and misunderstand: its cron has six fields, seconds first.

    Raises:
        InputError: Both or neither are given, the interval is none, or the expression has not six fields.
    """
    if cron and every_seconds:
        raise InputError("--cron and --every-seconds are both given", field="--cron", hint="give one of them")
    if every_seconds < 0:
        raise InputError("an interval is at least one second", field="--every-seconds", hint="--every-seconds 86400")
    if not cron.strip() and not every_seconds:
        hint = 'give --cron "0 0 2 * * *" or --every-seconds 86400'
        raise InputError("no time to start a run is given", field="--cron", hint=hint)
    if cron and len(cron.split()) != CRON_FIELDS:
        raise InputError(
            f"{cron!r} has {len(cron.split())} fields; Kubeflow's cron has six, the first being seconds",
            field="--cron",
            hint='for every night at two: "0 0 2 * * *"',
        )
