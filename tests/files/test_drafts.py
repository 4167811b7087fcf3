"""What killed writers leave goes with the next run of the same output; what is being written stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_retriever import files
from llm_retriever.files import drafts
from llm_retriever.stores.opening import open_store
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]
DIRECTORY = "with files.atomic_directory(path) as draft: (draft / 'weights').write_text('half'); wait()"
FILE = "with files.atomic_file(path) as draft: draft.write_text('half'); wait()"
STORED = (
    "os.link = shutil.copyfile = lambda source, target: (Path(target).write_text('half'), wait()); store.copy('a', 'b')"
)
PROGRAM = """
import os, shutil, sys, time
from pathlib import Path
from llm_retriever import files
from llm_retriever.stores.opening import open_store
path = Path(sys.argv[1]); store = open_store(path.parent)
def wait():
    print('writing', flush=True)
    while not (path.parent / 'go on').exists(): time.sleep(0.02)
"""


@contextlib.contextmanager
def writing(what: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing."""
    command = [sys.executable, "-c", PROGRAM + what, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        if process.poll() is None:
            process.kill()


def hidden(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob(".*"))


def killed(what: str, path: Path) -> None:
    with writing(what, path) as process:
        process.send_signal(signal.SIGKILL)


def write_again(what: str, path: Path) -> None:
    if what == DIRECTORY:
        with files.atomic_directory(path) as draft:
            (draft / "weights").write_text("whole")
    elif what == FILE:
        files.write_text(path, "whole")
    else:
        open_store(path.parent).copy("a", "b")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_text("whole")
    return tmp_path / "model"


@pytest.mark.parametrize("what", [DIRECTORY, FILE, STORED])
def test_the_next_run_removes_what_a_killed_one_has_left(what: str, path: Path) -> None:
    killed(what, path)
    assert len(hidden(path.parent)) == 2
    write_again(what, path)
    assert hidden(path.parent) == []


@pytest.mark.parametrize("what", [DIRECTORY, FILE])
def test_what_another_process_is_writing_stays_and_is_completed(what: str, path: Path) -> None:
    with writing(what, path) as process:
        other = hidden(path.parent)
        write_again(what, path)
        assert hidden(path.parent) == other
        (path.parent / "go on").touch()
        assert process.wait(30) == 0
    assert hidden(path.parent) == []
    assert (path / "weights" if what == DIRECTORY else path).read_text() == "half"


def test_leftovers_of_other_outputs_and_drafts_that_are_gone_on_with_stay(path: Path) -> None:
    killed(DIRECTORY, path.with_name("other"))
    growing = path.with_name(".model.0123456789abcdef.partial")
    growing.mkdir()
    before = hidden(path.parent)
    write_again(DIRECTORY, path)
    assert hidden(path.parent) == before


def test_a_draft_without_a_lock_goes_only_when_nobody_has_written_to_it_for_long(path: Path) -> None:
    """Earlier releases named drafts by a process id, which says nothing about a process in another pod."""
    draft = path.with_name(".model.17.partial")
    draft.mkdir()
    (draft / "weights").write_text("half")
    past = time.time() - drafts.ABANDONED_SECONDS - 60
    os.utime(draft, (past, past))
    write_again(DIRECTORY, path)
    assert (draft / "weights").exists(), "a file in it is new"
    os.utime(draft / "weights", (past, past))
    os.utime(draft, (past, past))
    write_again(DIRECTORY, path)
    assert not draft.exists()


def test_a_lock_alone_goes_when_it_is_old(path: Path) -> None:
    lock = path.with_name(".0123456789ab.lock")
    lock.touch()
    write_again(FILE, path)
    assert lock.exists()
    past = time.time() - drafts.ABANDONED_SECONDS - 60
    os.utime(lock, (past, past))
    write_again(FILE, path)
    assert not lock.exists()


def test_what_was_there_before_comes_back_if_the_writer_was_killed_between_two_names(path: Path) -> None:
    write_again(DIRECTORY, path)
    stop = "os.replace = lambda *names: (os.rename(*names), wait())\n"
    killed(stop + "with files.atomic_directory(path) as draft: (draft / 'weights').write_text('new')", path)
    assert not path.exists()
    with pytest.raises(ZeroDivisionError), files.atomic_directory(path):
        raise ZeroDivisionError
    assert (path / "weights").read_text() == "whole"
    assert hidden(path.parent) == []


def test_the_next_download_removes_what_a_killed_one_has_left(s3: S3Server, path: Path, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3.bucket}/x")
    store.write("weights", b"whole" * 5_000_000)
    target = tmp_path / "copy"
    target.mkdir()
    download = f"target=open_store({store.uri!r}).download, args=('', {str(target)!r})"
    loading = f"import threading; threading.Thread({download}).start()\n"

    def hold_back(request: dict[str, Any]) -> None:
        if "bytes=16777216-" in request.get("HTTP_RANGE", ""):
            time.sleep(1)

    s3.fault = hold_back
    until = f"while len(list(Path({str(target)!r}).glob('.weights*'))) < 1: time.sleep(0.02)\nwait()"
    killed(loading + until, path)
    s3.fault = None
    left = hidden(target)
    assert len(left) == 2
    assert all(map(drafts.is_draft, left))
    assert open_store(target).list() == []
    store.download("", target)
    assert hidden(target) == []
    assert (target / "weights").stat().st_size == 25_000_000
