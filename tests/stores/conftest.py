"""What the tests of the stores share: a place to store at, of either kind, and something to store."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_retriever.stores.opening import Store, open_store


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A URI that a store can be opened at."""
    if request.param == "local":
        return str(tmp_path / "stored")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket}/some/prefix"


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with text, bytes, an empty file, a nested one and a name that is not ASCII."""
    path = tmp_path / "directory"
    (path / "deep" / "er").mkdir(parents=True)
    (path / "a.txt").write_text("a\n")
    (path / "deep" / "er" / "bytes.bin").write_bytes(bytes(range(256)) * 64)
    (path / "deep" / "empty").touch()
    (path / "deep" / "naïve name+1%.txt").write_text("ü")
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
