"""A server on loopback that speaks as much of the Kubernetes API as following a TrainJob needs, and remembers requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

NAMESPACE = "retrievers"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"
Answer = tuple[int, Any]


@dataclass
class Request:
    """One request: method, path, query and decoded body."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


def condition(kind: str, reason: str = "", message: str = "") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": message}


def pod(name: str, index: int, status: dict[str, Any] | None = None) -> dict[str, Any]:
    """A node's pod as the API shows it."""
    labels = {"batch.kubernetes.io/job-completion-index": str(index)}
    metadata = {"name": name, "labels": labels, "creationTimestamp": "2026-01-02T03:04:05Z"}
    return {"metadata": metadata, "status": status or {"phase": "Running"}}


def container(**state: Any) -> dict[str, Any]:
    """The status of a pod by that of its container: `state`, `lastState`, `restartCount`."""
    told = {"name": "node", "ready": False, "image": "i", "imageID": "i", "restartCount": 0}
    return {"containerStatuses": [told | state]}


@dataclass
class Moment:
    """What the cluster shows at one poll.

    Attributes:
        conditions: Of the TrainJob.
        pods: Of the TrainJob.
        logs: Of the pods by name; of the container before its last start where the name has `.previous`.
        gone: The TrainJob has been deleted by someone.
        events: Warnings by the name of the object that they are about.
    """

    conditions: list[dict[str, str]] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    gone: bool = False
    events: dict[str, str] = field(default_factory=dict)


@dataclass
class Cluster:
    """What the cluster has and what it was asked.

    Attributes:
        jobs: TrainJobs by name.
        moments: What successive polls of a TrainJob see; the last one stays.
        own: The step's own pod.
        refusal: Status and message of every creation, when set.
        broken: How many polls are answered with an error before one is not.
        ill: Method and end of the path of requests that are answered with an error, and how many of them still.
        heard: Called with every request before it is answered.
        created: Called with a TrainJob that is created.
        deleted: Called with the name of one that is deleted.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    moments: list[Moment] = field(default_factory=lambda: [Moment([condition("Complete")])])
    own: dict[str, Any] | None = None
    refusal: tuple[int, str] | None = None
    broken: int = 0
    ill: dict[tuple[str, str], int] = field(default_factory=dict)
    heard: Callable[[Request], None] = lambda request: None
    created: Callable[[dict[str, Any]], None] = lambda job: None
    deleted: Callable[[str], None] = lambda name: None

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def answer(self, request: Request) -> Answer | str:
        self.heard(request)
        for (method, end), left in self.ill.items():
            if left and request.method == method and request.path.endswith(end):
                self.ill[method, end] -= 1
                return self._error(500, "etcd leader changed")
        if request.path == EVENTS:
            return 200, {"kind": "EventList", "items": self._events(request.query["fieldSelector"])}
        if request.path == JOBS:
            return self._jobs(request)
        if request.path.startswith(f"{JOBS}/"):
            return self._job(request, request.path.removeprefix(f"{JOBS}/"))
        if request.path == PODS:
            return 200, {"kind": "PodList", "items": self.moments[0].pods}
        name, _, rest = request.path.removeprefix(f"{PODS}/").partition("/")
        if rest == "log":
            return self._log(name, "previous" in request.query)
        if self.own and name == self.own["metadata"]["name"]:
            return 200, self.own
        return self._error(404, "not found")

    def _jobs(self, request: Request) -> Answer:
        if request.method == "GET":
            key, _, value = request.query["labelSelector"].partition("=")
            return 200, {"items": [j for j in self.jobs.values() if j["metadata"]["labels"].get(key) == value]}
        if self.refusal:
            return self._error(*self.refusal)
        job = request.body
        if job["metadata"]["name"] in self.jobs:
            return self._error(409, "it exists already")
        self.jobs[job["metadata"]["name"]] = job
        self.created(job)
        return 201, job

    def _job(self, request: Request, name: str) -> Answer:
        if name not in self.jobs:
            return self._error(404, f"trainjobs {name!r} not found")
        if request.method == "DELETE":
            self.deleted(name)
            return 200, self.jobs.pop(name)
        if request.method == "PATCH":
            self.jobs[name]["metadata"] |= request.body["metadata"]
            return 200, self.jobs[name]
        if self.broken:
            self.broken -= 1
            return self._error(503, "the apiserver is restarting")
        if len(self.moments) > 1 and len(self.asked("GET", f"{JOBS}/{name}")) > 1:
            self.moments.pop(0)
        if self.moments[0].gone:
            return self._error(404, f"trainjobs {name!r} not found")
        return 200, self.jobs[name] | {"status": {"conditions": self.moments[0].conditions}}

    def _events(self, selector: str) -> list[dict[str, Any]]:
        wanted = dict(part.split("=") for part in selector.split(","))
        message = self.moments[0].events.get(wanted["involvedObject.name"])
        return [{"reason": "FailedCreate", "message": message, "type": wanted["type"]}] if message else []

    def _log(self, name: str, previous: bool) -> Answer | str:
        found = self.moments[0].logs.get(f"{name}.previous" if previous else name)
        return found if found is not None else self._error(400, f"container of {name} is waiting to start")

    def _error(self, status: int, message: str) -> Answer:
        return status, {"kind": "Status", "status": "Failure", "message": message, "code": status}


def write_kubeconfig(path: Path, url: str) -> Path:
    """A kubeconfig for this server."""
    entry = {"cluster": "here", "user": "me", "namespace": NAMESPACE}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {}}],
        "contexts": [{"name": "here", "context": entry}],
    }
    path.write_text(json.dumps(config))
    return path


@contextmanager
def serving() -> Iterator[Cluster]:
    """A running server; it ends with the block."""
    cluster, lock = Cluster(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            address = urlparse(self.path)
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            with lock:
                request = Request(self.command, address.path, query, json.loads(text) if text else None)
                cluster.requests.append(request)
                answer = cluster.answer(request)
            status, body = (200, answer) if isinstance(answer, str) else (answer[0], json.dumps(answer[1]))
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    cluster.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield cluster
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()
