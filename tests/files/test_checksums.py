"""Large files are read once; what has changed, or may have, is read again."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm_retriever import files
from llm_retriever.files import checksums
from llm_retriever.models.card import weights_digest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered yet, and files count as large and settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(checksums.VERIFY, raising=False)
    monkeypatch.setattr(checksums, "_known", {})
    monkeypatch.setattr(checksums, "LARGE", 1)
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 0)
    return tmp_path / "cache" / "llm-retriever" / "checksums.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read from now on."""
    names, sha256_of_file = list[str](), files.sha256_of_file

    def seen(path: str | Path) -> str:
        names.append(Path(path).name)
        return sha256_of_file(path)

    monkeypatch.setattr(files, "sha256_of_file", seen)
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for number in (1, 2):
        (tmp_path / "model" / f"model-{number}.safetensors").write_bytes(b"w" * 100 * number)
    return tmp_path / "model"


def test_weights_are_read_once_by_a_process_and_not_at_all_by_the_next_one(
    model: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = weights_digest(model)
    assert weights_digest(model) == digest
    assert read == ["model-1.safetensors", "model-2.safetensors"]
    program = (
        "import sys; from llm_retriever import files; from llm_retriever.files import checksums\n"
        "from llm_retriever.models.card import weights_digest;"
        "checksums.LARGE, checksums.SETTLED_SECONDS, files.sha256_of_file = 1, 0, None; print(weights_digest(sys.argv[1]))"
    )
    again = subprocess.run([sys.executable, "-c", program, model], cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout.strip() == digest


def test_changed_weights_are_read_again_even_if_size_and_time_are_the_same(model: Path, read: list[str]) -> None:
    before, path = weights_digest(model), model / "model-1.safetensors"
    status = path.stat()
    path.write_bytes(b"v" * 100)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights_digest(model) != before
    assert read.count("model-1.safetensors") == 2
    assert read.count("model-2.safetensors") == 1


def test_a_file_that_was_changed_moments_ago_is_neither_trusted_nor_remembered(
    model: Path, read: list[str], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", 2.5)
    assert weights_digest(model) == weights_digest(model)
    assert len(read) == 4
    assert not cache.exists()
    time.sleep(2.6)
    assert weights_digest(model) == weights_digest(model)
    assert len(read) == 6
    os.utime(model / "model-1.safetensors")
    weights_digest(model)
    assert len(read) == 7


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sha256_of_file = model / "model-1.safetensors", files.sha256_of_file

    def changed(read: str | Path) -> str:
        found = sha256_of_file(read)
        path.write_bytes(b"v" * 100)
        return found

    monkeypatch.setattr(files, "sha256_of_file", changed)
    checksums.sha256_of_large_file(path)
    monkeypatch.setattr(files, "sha256_of_file", sha256_of_file)
    assert not cache.exists()
    assert checksums.sha256_of_large_file(path) == hashlib.sha256(b"v" * 100).hexdigest()


def test_the_environment_can_ask_for_full_verification(
    model: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_digest(model)
    monkeypatch.setenv("LLM_RETRIEVER_VERIFY", "1")
    weights_digest(model)
    assert len(read) == 4


@pytest.mark.parametrize("content", ["not json", "[1]", '{"x": 1}'])
def test_a_spoilt_cache_is_written_anew(model: Path, read: list[str], cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    weights_digest(model)
    assert len(read) == 2
    assert set(json.loads(cache.read_text()).values()) >= set(checksums._known.values()) - {1}


def test_where_nothing_can_be_written_the_process_still_remembers(
    model: Path, read: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert weights_digest(model) == weights_digest(model)
    assert len(read) == 2


def test_the_cache_stays_small(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "ENTRIES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_text(f"content {number}")
        checksums.sha256_of_large_file(tmp_path / str(number))
    assert [key.rpartition("/")[2] for key in json.loads(cache.read_text())] == ["2", "3", "4"]
