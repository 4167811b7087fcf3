"""A server on loopback that speaks as much of Kubeflow Pipelines' REST protocol as its clients need, and remembers requests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlparse

BASE = "/apis/v2beta1"
STARTED = "2026-01-02T03:04:05Z"


@dataclass
class Request:
    """One request: method, path without the API's prefix, query, decoded body and headers."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Server:
    """What the server knows and what it was asked.

    Attributes:
        states: States that successive reads of a run answer with; the last one stays.
        refusal: Status and message of every creation, when set.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    recurring: dict[str, dict[str, Any]] = field(default_factory=dict)
    states: list[str] = field(default_factory=lambda: ["SUCCEEDED"])
    refusal: tuple[int, str] | None = None
    experiments: dict[str, str] = field(default_factory=dict)

    def asked(self, method: str, path: str) -> list[Request]:
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def answer(self, request: Request) -> tuple[int, Any]:
        method, parts = request.method, request.path.strip("/").split("/")
        if method == "POST" and self.refusal:
            return self.refusal[0], {"error": self.refusal[1], "code": 3, "message": self.refusal[1]}
        if parts == ["healthz"]:
            return 200, {"multi_user": False}
        if parts[0] == "experiments":
            return self._experiments(method, request)
        if parts[0] == "recurringruns":
            return self._recurring(method, parts[1:], request)
        if parts == ["runs"]:
            run = {"run_id": "run-1", "display_name": "train_retriever", "state": "RUNNING", "created_at": STARTED}
            return 200, run if method == "POST" else {"runs": [run]}
        if parts[0] == "runs":
            return 200, self._run(parts[1])
        return 404, {"error": "not found"}

    def _experiments(self, method: str, request: Request) -> tuple[int, Any]:
        if method == "POST":
            name = request.body["display_name"]
            self.experiments[name] = f"experiment-{len(self.experiments) + 1}"
            return 200, {"experiment_id": self.experiments[name], "display_name": name}
        wanted = json.loads(request.query["filter"])["predicates"][0]["stringValue"]
        found = [{"experiment_id": i, "display_name": n} for n, i in self.experiments.items() if n == wanted]
        return 200, {"experiments": found}

    def _recurring(self, method: str, rest: list[str], request: Request) -> tuple[int, Any]:
        if method == "POST":
            made = {**request.body, "recurring_run_id": f"job-{len(self.requests)}"}
            self.recurring[made["recurring_run_id"]] = made
            return 200, made
        if method == "DELETE":
            del self.recurring[rest[0]]
            return 200, {}
        shown = [{k: j[k] for k in ("recurring_run_id", "display_name")} for j in self.recurring.values()]
        start = int(request.query.get("page_token") or 0)
        following = str(start + 1) if start + 1 < len(shown) else ""
        return 200, {"recurringRuns": shown[start : start + 1], "next_page_token": following}

    def _run(self, run: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        done = state not in ("RUNNING", "PENDING")
        task = {"task_id": "t1", "display_name": "prepare-corpus", "state": state, "start_time": STARTED}
        task |= {"end_time": "2026-01-02T03:05:35Z"} if done else {}
        driver = {"display_name": "prepare-corpus-driver", "state": "SUCCEEDED"}
        return {"run_id": run, "state": state, "created_at": STARTED, "run_details": {"task_details": [driver, task]}}


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
            body = json.loads(text) if text else None
            request = Request(self.command, path, query, body, dict(self.headers))
            server.requests.append(request)
            status, answer = server.answer(request)
            encoded = json.dumps(answer).encode()
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
