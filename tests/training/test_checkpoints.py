"""A checkpoint is whole or not there, and travels to the store and back."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llm_retriever.stores.opening import open_store
from llm_retriever.training.checkpoints import Checkpoints, StopRequest, Timer


def written(directory: Path, update: int, content: str = "weights") -> Path:
    checkpoint = directory / f"checkpoint-{update}"
    (checkpoint / "global_step").mkdir(parents=True)
    (checkpoint / "model.safetensors").write_text(content)
    (checkpoint / "global_step" / "optimizer.pt").write_text(content)
    return checkpoint


def test_without_any_there_is_nothing_to_go_on_from(tmp_path):
    assert Checkpoints(tmp_path / "none").restore() is None


def test_the_newest_complete_one_counts_as_numbers_do(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for update in (9, 10):
        checkpoints.complete(written(tmp_path, update))
    assert checkpoints.restore() == tmp_path / "checkpoint-10"


def test_one_that_was_not_finished_is_ignored_and_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.complete(written(tmp_path, 9))
    half = written(tmp_path, 10)
    assert checkpoints.restore() == tmp_path / "checkpoint-9"
    assert not half.exists()


def test_one_that_lost_a_file_or_a_part_of_one_is_ignored(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    cut, robbed = written(tmp_path, 1), written(tmp_path, 2)
    checkpoints.complete(cut)
    checkpoints.complete(robbed)
    (robbed / "global_step" / "optimizer.pt").unlink()
    assert checkpoints.latest() is None
    (cut := written(tmp_path, 3), checkpoints.complete(cut))
    (cut / "model.safetensors").write_text("w")
    assert checkpoints.latest() is None


def test_older_ones_make_room_only_after_the_new_one_is_complete(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    old = written(tmp_path, 1)
    checkpoints.complete(old)
    new = written(tmp_path, 2)
    assert old.exists()
    checkpoints.complete(new)
    assert not old.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-2.json"]


@pytest.fixture(params=["local", "s3"])
def mirror(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "mirror")
    return f"s3://{request.getfixturevalue('s3').bucket}/checkpoints/key"


def test_another_machine_goes_on_from_the_mirror(mirror, tmp_path):
    here = Checkpoints(tmp_path / "here", mirror)
    here.complete(written(tmp_path / "here", 4, "four"))
    here.complete(written(tmp_path / "here", 8, "eight"))
    there = Checkpoints(tmp_path / "there", mirror)
    assert there.restore() == tmp_path / "there" / "checkpoint-8"
    assert (tmp_path / "there" / "checkpoint-8" / "global_step" / "optimizer.pt").read_text() == "eight"
    assert {entry.key.split("/")[0] for entry in open_store(mirror).list()} == {"checkpoint-8", "checkpoint-8.json"}
    there.discard()
    assert not open_store(mirror).list()


def test_a_half_copied_mirror_is_not_resumed_from(tmp_path):
    mirror = tmp_path / "mirror"
    here = Checkpoints(tmp_path / "here", str(mirror))
    here.complete(written(tmp_path / "here", 4))
    (mirror / "checkpoint-4.json").unlink()
    assert Checkpoints(tmp_path / "there", str(mirror)).restore() is None


def test_a_newer_local_checkpoint_is_kept(tmp_path):
    written(tmp_path / "old", 4)
    Checkpoints(tmp_path / "old", str(tmp_path / "mirror")).complete(tmp_path / "old" / "checkpoint-4")
    Checkpoints(tmp_path / "here").complete(written(tmp_path / "here", 6))
    assert Checkpoints(tmp_path / "here", str(tmp_path / "mirror")).restore().name == "checkpoint-6"


def test_discarding_removes_them_here_and_in_the_mirror(tmp_path):
    here = Checkpoints(tmp_path / "here", str(tmp_path / "mirror"))
    here.complete(written(tmp_path / "here", 4))
    here.discard()
    assert not (tmp_path / "here").exists()
    assert Checkpoints(tmp_path / "there", str(tmp_path / "mirror")).restore() is None


def test_a_stop_is_requested_by_a_file(tmp_path):
    with StopRequest(tmp_path / "stop") as stop:
        assert not stop
        (tmp_path / "stop").touch()
        assert stop


def test_a_checkpoint_is_due_after_its_minutes():
    timer = Timer(0.05 / 60)
    assert not timer.is_due()
    time.sleep(0.06)
    assert timer.is_due()
    timer.restart()
    assert not timer.is_due()
