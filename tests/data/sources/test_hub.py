"""Data sets of the hub, downloaded from a small server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llm_retriever.data import preparation
from llm_retriever.data.sources.hub import Address
from llm_retriever.errors import InputError
from llm_retriever.settings import CorpusSettings
from tests.conftest import write_beir

COMMIT, QRELS_COMMIT = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """Serves repositories: for each name its commit and directory; remembers the paths that were asked for."""

    def __init__(self, repositories: dict[str, tuple[str, Path]]) -> None:
        super().__init__(("127.0.0.1", 0), HubRequest)
        self.repositories, self.asked = repositories, list[str]()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


class HubRequest(BaseHTTPRequestHandler):
    """Answers what `huggingface_hub` asks for to download a snapshot."""

    server: Hub

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        for name, (commit, directory) in self.server.repositories.items():
            if path.startswith((f"/api/datasets/{name}/", f"/datasets/{name}/resolve/")):
                self._answer(path, name, commit, directory)
                return
        self._refuse("RepoNotFound")

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, path: str, name: str, commit: str, directory: Path) -> None:
        kind, _, rest = path.removeprefix("/api/").removeprefix("/").removeprefix(f"datasets/{name}/").partition("/")
        revision, _, inner = rest.partition("/")
        if revision not in (commit, "main"):
            self._refuse("RevisionNotFound")
        elif kind == "revision":
            self._json({"id": name, "sha": commit, "cardData": {"license": "cc-by-4.0"}, "siblings": [], "tags": []})
        elif kind == "tree":
            self._json([self._entry(path, directory) for path in sorted(directory.rglob("*")) if path.is_file()])
        else:
            self._file((directory / inner).read_bytes(), commit)

    def _entry(self, path: Path, directory: Path) -> dict[str, object]:
        content = path.read_bytes()
        found = {"type": "file", "path": path.relative_to(directory).as_posix(), "size": len(content)}
        return {**found, "oid": hashlib.sha1(content).hexdigest()}

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, content: bytes, commit: str) -> None:
        self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit})

    def _refuse(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": "not here"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with one whole data set, and one whose judgments have a repository of their own."""
    whole = write_beir(tmp_path / "whole")
    (whole / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (whole / "model.bin").write_bytes(b"not wanted")
    divided = write_beir(tmp_path / "divided")
    qrels = tmp_path / "qrels"
    (divided / "qrels").rename(qrels)
    server = Hub(
        {"someone/facts": (COMMIT, whole), "BeIR/facts-qrels": (QRELS_COMMIT, qrels), "BeIR/facts": (COMMIT, divided)}
    )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def step(hub: Hub, uri: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Runs the step in a process of its own, because the hub's address is read when its library is imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(directory / "cache")}
    outputs = ["--collection", str(directory / "collection"), "--statistics", str(directory / "statistics.md")]
    command = [sys.executable, "-m", "components.prepare_corpus", "--uri", uri, *outputs]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def fingerprint(directory: Path, source: Path) -> str:
    return str(preparation.prepare(CorpusSettings(uri=str(source)), directory / "plain")["fingerprint"])


def manifest(directory: Path) -> dict[str, dict[str, str]]:
    return json.loads((directory / "collection" / "collection.json").read_text())  # type: ignore[no-any-return]


def test_a_data_set_is_downloaded_at_its_commit_and_prepared(hub: Hub, tmp_path: Path) -> None:
    done = step(hub, f"hf://datasets/someone/facts@{COMMIT}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path)["fingerprint"] == fingerprint(tmp_path, tmp_path / "whole")
    assert manifest(tmp_path)["source"]["revision"] == COMMIT
    assert manifest(tmp_path)["licence"] == "cc-by-4.0"
    assert not [path for path in hub.asked if path.endswith("model.bin")]


@pytest.mark.slow
def test_a_branch_is_recorded_as_the_commit_it_stands_for(hub: Hub, tmp_path: Path) -> None:
    done = step(hub, "hf://datasets/someone/facts", tmp_path)
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path)["source"]["revision"] == COMMIT


@pytest.mark.slow
def test_judgments_in_a_repository_of_their_own_are_fetched_along(hub: Hub, tmp_path: Path) -> None:
    done = step(hub, "hf://datasets/BeIR/facts", tmp_path)
    assert done.returncode == 0, done.stderr
    assert manifest(tmp_path)["fingerprint"] == fingerprint(tmp_path, tmp_path / "whole")
    assert manifest(tmp_path)["source"]["qrels_revision"] == QRELS_COMMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("hf://datasets/someone/nothing", "there is no such data set"),
        ("hf://datasets/someone/facts@v9", "there is no such revision"),
    ],
)
def test_what_the_hub_does_not_have_ends_the_step_with_one_line(
    hub: Hub, tmp_path: Path, uri: str, problem: str
) -> None:
    done = step(hub, uri, tmp_path)
    assert done.returncode == 2
    assert problem in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "collection").exists()


@pytest.mark.slow
def test_a_hub_that_does_not_answer_ends_the_step_with_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.endpoint = "http://127.0.0.1:9"
    done = step(hub, "hf://datasets/someone/facts", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "the hub could not be read" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "uri", ["hf://someone/facts", "hf://datasets/facts", "hf://datasets/../etc/x", "hf://datasets/a/b@"]
)
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="write hf://datasets/OWNER/NAME@COMMIT"):
        Address.parse(uri)
