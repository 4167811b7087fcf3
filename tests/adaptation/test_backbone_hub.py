"""Backbones from the Hugging Face hub, spoken to over HTTP by a process of its own: its client reads the environment once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.models.card import Lineage, load_lineage, weights_digest
from tests.adaptation.test_backbone import COMMIT, as_others_publish_it, change


class Hub:
    """The routes of a Hugging Face hub that a snapshot needs, for one model at one commit."""

    def __init__(self, model: Path) -> None:
        self.paths: list[str] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, model)

            def do_GET(self) -> None:
                hub.answer(self, model)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler, model: Path) -> None:
        path = request.path.partition("?")[0]
        self.paths.append(f"{request.command} {path}")
        self.tokens.add(request.headers.get("Authorization"))
        if path == f"/api/models/owner/tiny/tree/{COMMIT}":
            rows = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40} for p in model.iterdir()
            ]
            self.send(request, 200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/owner/tiny/resolve/{COMMIT}/"):
            content = (model / path.rpartition("/")[2]).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.send(request, 200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        elif path.startswith("/api/models/owner/tiny/"):
            self.send(request, 404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/models/owner/gated/"):
            self.send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self.send(request, 404, b"", {"X-Error-Code": "RepoNotFound"})

    def send(self, request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


@pytest.fixture
def model(backbone_directory: Path, tmp_path: Path) -> Path:
    return as_others_publish_it(backbone_directory, tmp_path / "model")


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    (model / "modeling_own.py").write_text("raise SystemExit")
    server = Hub(model)
    yield server
    server.server.shutdown()
    server.server.server_close()


def run_on_hub(hub: Hub, tmp_path: Path, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_TOKEN": "hf_planted",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **variables,
    }
    (tmp_path / "collection").mkdir(exist_ok=True)
    paths = ["--collection", str(tmp_path / "collection"), "--backbone", str(tmp_path / "out" / "backbone")]
    command = [sys.executable, "-m", "components.fetch_backbone", *paths, *flags]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_hub_model_is_fetched_at_its_commit_without_pickles_and_code(hub: Hub, model: Path, tmp_path: Path) -> None:
    done = run_on_hub(hub, tmp_path, "--source", "owner/tiny", "--revision", COMMIT)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out" / "backbone"
    assert load_lineage(output) == Lineage("owner/tiny", COMMIT, weights_digest(model))
    assert (output / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert not [path for path in hub.paths if path.endswith((".bin", ".py"))]
    assert list((tmp_path / "out").iterdir()) == [output]
    assert re.fullmatch(r"fetch owner/tiny@01234567: \d+ MB, .*\n", done.stderr)
    assert "Bearer hf_planted" in hub.tokens
    written = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    assert b"hf_planted" not in b"".join(written) + done.stdout.encode() + done.stderr.encode()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "revision", "variables", "problem"),
    [
        (
            "owner/tiny",
            "f" * 40,
            {},
            f'owner/tiny: field "source": the hub has no revision {"f" * 40}; check the commit',
        ),
        (
            "owner/none",
            COMMIT,
            {},
            'owner/none: field "source": no such directory, and no such model on the hub; check',
        ),
        ("owner/gated", COMMIT, {}, "access is refused; accept its licence on the hub and set HF_TOKEN"),
        (
            "owner/tiny",
            COMMIT,
            {"HF_HUB_OFFLINE": "1"},
            "the hub cannot be reached; check the path or the",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_bad_input(
    hub: Hub, tmp_path: Path, source: str, revision: str, variables: dict[str, str], problem: str
) -> None:
    done = run_on_hub(hub, tmp_path, "--source", source, "--revision", revision, **variables)
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr.splitlines()[-1]
    assert "hf_planted" not in done.stdout + done.stderr
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_an_encoder_on_the_hub_is_refused_before_its_weights_are_fetched(hub: Hub, model: Path, tmp_path: Path) -> None:
    change(model / "config.json", architectures=["BertModel"])
    done = run_on_hub(hub, tmp_path, "--source", "owner/tiny", "--revision", COMMIT)
    assert done.returncode == 2
    assert "owner/tiny@01234567/config.json" in done.stderr
    assert not [path for path in hub.paths if path.endswith(".safetensors")]
