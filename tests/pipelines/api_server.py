"""A server on loopback that speaks as much of Kubeflow Pipelines' REST protocol as its clients need, and remembers requests."""

from __future__ import annotations

import email
import email.policy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

BASE = "/apis/v2beta1"
STARTED = "2026-01-02T03:04:05Z"


@dataclass
class Request:
    """One request: method, path without the API's prefix, query, body (of JSON, or an upload's YAML documents), headers."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Moment:
    """A run at one time: what the API answers about it, and Argo's workflow as it was last reported."""

    answer: dict[str, Any]
    manifest: str = ""


@dataclass
class Server:
    """What the server knows and what it was asked.

    Attributes:
        runs: Of every run, the moments that successive reads of it answer with; the last one stays.
        logs: What pods have printed, by the pod's name.
        serves_v1: Whether the API of v1beta1, which gives Argo's workflow of a run, and the logs are served.
        outages: Statuses that the next reads of runs are answered with, 0 being a connection that breaks off.
        login: Status and message of everything, when set.
        refusal: Status and message of every creation, when set.
        pipelines: Names of the pipelines, by id.
        versions: Of the pipelines, by id: name, the pipeline's id, and the uploaded documents.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, list[Moment]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    serves_v1: bool = True
    outages: list[int] = field(default_factory=list)
    login: tuple[int, str] | None = None
    refusal: tuple[int, str] | None = None
    experiments: dict[str, str] = field(default_factory=dict)
    pipelines: dict[str, str] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def answer(self, request: Request) -> tuple[int, Any]:
        method, parts = request.method, request.path.strip("/").split("/")
        refusal = self.login or (self.refusal if method == "POST" else None)
        if refusal:
            return refusal[0], {"error": refusal[1], "code": 3, "message": refusal[1]}
        if parts == ["healthz"]:
            return 200, {"multi_user": False}
        if parts[0] == "experiments":
            return self._experiments(method, parts[1:], request)
        if parts[0] == "pipelines":
            return self._pipelines(parts[1:], request)
        if parts[0] == "recurringruns":
            return self._recurring(method, parts[1:], request)
        if parts == ["runs"] and method == "POST":
            run = {"run_id": "run-1", "display_name": "train_retriever", "state": "RUNNING", "created_at": STARTED}
            self.runs.setdefault("run-1", [Moment(run)])
            return 200, run
        if parts == ["runs"]:
            return 200, {"runs": [moments[0].answer for moments in self.runs.values()]}
        if "runs" in parts:
            return self._run(parts)
        return 404, {"code": 5, "message": "Not Found", "details": []}  # of the gateway, about a path

    def _experiments(self, method: str, rest: list[str], request: Request) -> tuple[int, Any]:
        known = [{"experiment_id": i, "display_name": n, "created_at": STARTED} for n, i in self.experiments.items()]
        if method == "POST":
            name = request.body["display_name"]
            self.experiments[name] = f"experiment-{len(self.experiments) + 1}"
            return 200, {"experiment_id": self.experiments[name], "display_name": name, "created_at": STARTED}
        if rest:
            return 200, next(found for found in known if found["experiment_id"] == rest[0])
        if "filter" in request.query:
            wanted = json.loads(request.query["filter"])["predicates"][0]["stringValue"]
            known = [found for found in known if found["display_name"] == wanted]
        return 200, {"experiments": known}

    def _pipelines(self, rest: list[str], request: Request) -> tuple[int, Any]:
        match rest:
            case ["upload"]:
                self.pipelines["pipeline-1"] = request.query["name"]
                self._add_version("pipeline-1", request.query["name"], request.body)
                return 200, self._pipeline("pipeline-1")
            case ["upload_version"]:
                return 200, self._add_version(request.query["pipelineid"], request.query["name"], request.body)
            case []:
                return 200, {"pipelines": [self._pipeline(pipeline) for pipeline in self.pipelines]}
            case [pipeline]:
                return 200, self._pipeline(pipeline)
            case [_, "versions"]:
                return 200, {"pipeline_versions": list(self.versions.values())}
            case [_, "versions", version]:
                known = self.versions.get(version)
                return (200, known) if known else not_found("pipeline version", "PipelineVersion", version)
        return 404, {"error": "not found"}

    def _pipeline(self, pipeline: str) -> dict[str, Any]:
        return {"pipeline_id": pipeline, "display_name": self.pipelines[pipeline], "created_at": STARTED}

    def _add_version(self, pipeline: str, name: str, documents: list[Any]) -> dict[str, Any]:
        version = f"version-{len(self.versions) + 1}"
        specification = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        self.versions[version] = {
            "pipeline_id": pipeline,
            "pipeline_version_id": version,
            "display_name": name,
            "created_at": STARTED,
            "pipeline_spec": specification,
        }
        return self.versions[version]

    def _recurring(self, method: str, rest: list[str], request: Request) -> tuple[int, Any]:
        if method == "POST":
            made = {**request.body, "recurring_run_id": f"job-{len(self.requests)}", "created_at": STARTED}
            self.recurring[made["recurring_run_id"]] = made
            return 200, made
        if rest and rest[0] not in self.recurring:
            return not_found("recurring run", "Job", rest[0])
        if method == "DELETE":
            del self.recurring[rest[0]]
            return 200, {}
        if rest:
            return 200, self.recurring[rest[0]]
        kept = ("recurring_run_id", "display_name", "trigger", "status")
        shown = [{k: j[k] for k in kept if k in j} for j in self.recurring.values()]
        start = int(request.query.get("page_token") or 0)
        following = str(start + 1) if start + 1 < len(shown) else ""
        return 200, {"recurringRuns": shown[start : start + 1], "next_page_token": following}

    def _run(self, parts: list[str]) -> tuple[int, Any]:
        if self.outages:
            status = self.outages.pop(0)
            return status, {"error": "the server is starting", "code": 14, "message": "the server is starting"}
        version, run = parts[1] if parts[0] == "apis" else "v2beta1", parts[parts.index("runs") + 1]
        if version != "v2beta1" and not self.serves_v1:
            return 404, {"code": 5, "message": "Not Found", "details": []}
        if run not in self.runs:
            return not_found("run", "Run", run)
        if version == "v1alpha1":
            return 200, self._log(parts[-2])
        moments = self.runs[run]
        if version == "v1beta1":  # asked after the run itself: this ends the moment
            moment = moments.pop(0) if len(moments) > 1 else moments[0]
            runtime = {"workflow_manifest": moment.manifest} if moment.manifest else {}
            return 200, {"run": {"id": run}, "pipeline_runtime": runtime}
        moment = moments.pop(0) if len(moments) > 1 and not self.serves_v1 else moments[0]
        return 200, moment.answer

    def _log(self, pod: str) -> str:
        """A pod's log; of one that is gone an error, behind a status that says that all is well."""
        if pod in self.logs:
            return self.logs[pod]
        message = f"Failed to read logs from pod {pod}: pods {pod!r} not found"
        return json.dumps({"error_message": message, "error_details": message}, separators=(",", ":"))


def not_found(asked: str, kind: str, name: str) -> tuple[int, Any]:
    """What the API answers about a thing that it does not know."""
    message = f"Failed to get a {asked}: ResourceNotFoundError: {kind} {name} not found: {kind} {name} not found"
    return 404, {"error": message, "code": 5, "message": message, "details": []}


def decoded(text: bytes, kind: str) -> Any:
    """The body of a request: JSON, or the YAML documents of the file in a form."""
    if not kind.startswith("multipart/"):
        return json.loads(text) if text else None
    header = f"Content-Type: {kind}\r\n\r\n".encode()
    (file,) = email.message_from_bytes(header + text, policy=email.policy.HTTP).iter_parts()
    return list(yaml.safe_load_all(file.get_content()))


@contextmanager
def serving() -> Iterator[Server]:
    """A running server; it ends with the block."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            address = urlparse(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            path = address.path.removeprefix(BASE)
            body = decoded(text, self.headers.get("Content-Type") or "")
            request = Request(self.command, path, query, body, dict(self.headers))
            server.requests.append(request)
            status, answer = server.answer(request)
            if not status:
                self.close_connection = True
                return
            encoded = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_GET = do_POST = do_DELETE = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
