"""Checkpoints of a training: where they lie, when one is complete, how they travel to the store and back.

A checkpoint is a directory `checkpoint-<update>` and, written last, its mark `checkpoint-<update>.json` with the size
of every file. What has no mark, or does not agree with it, was interrupted and is never resumed from.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from llm_retriever import files

NAME = re.compile(r"checkpoint-(\d+)")


class Checkpoints:
    """The checkpoints of one training.

    Args:
        directory: Where they are written.
        mirror: s3:// prefix that complete checkpoints are copied to; "" = none.
    """

    def __init__(self, directory: Path, mirror: str = "") -> None:
        self.directory, self.mirror = Path(directory), mirror

    def latest(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        found = [path for path in self.directory.glob("checkpoint-*") if path.is_dir() and self._is_complete(path)]
        return max(found, key=_update, default=None)

    def restore(self) -> Path | None:
        """Removes what is incomplete, fetches a newer checkpoint from the mirror, and returns the newest one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.glob("checkpoint-*"):
            if path.is_dir() and not self._is_complete(path):
                shutil.rmtree(path)
        if self.mirror:
            self._fetch_newer()
        return self.latest()

    def complete(self, checkpoint: Path) -> None:
        """Marks a checkpoint that is fully written, copies it to the mirror and removes older ones."""
        mark = {str(path.relative_to(checkpoint)): path.stat().st_size for path in _files(checkpoint)}
        files.write_json(_mark(checkpoint), {"files": mark})
        for path in self.directory.glob("checkpoint-*"):
            if path.is_dir() and _update(path) < _update(checkpoint):
                _mark(path).unlink(missing_ok=True)
                shutil.rmtree(path)
        if self.mirror:
            self._send(checkpoint)

    def discard(self) -> None:
        """Removes all of them, here and in the mirror: the result they led to is complete."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.mirror:
            from llm_retriever.store import open_store

            open_store(self.mirror).delete("")

    def _is_complete(self, checkpoint: Path) -> bool:
        try:
            expected = json.loads(_mark(checkpoint).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError):
            return False
        return {str(p.relative_to(checkpoint)): p.stat().st_size for p in _files(checkpoint)} == expected

    def _send(self, checkpoint: Path) -> None:
        from llm_retriever.store import open_store

        store = open_store(self.mirror)
        old = {match[0] for match in (NAME.match(entry.key) for entry in store.list()) if match}
        store.upload(checkpoint, checkpoint.name)
        store.write(_mark(checkpoint).name, _mark(checkpoint).read_bytes())
        for name in old - {checkpoint.name}:
            store.delete(f"{name}.json")
            store.delete(name)

    def _fetch_newer(self) -> None:
        from llm_retriever.store import open_store

        store, here = open_store(self.mirror), self.latest()
        marks = [e.key for e in store.list() if NAME.match(e.key) and "/" not in e.key and e.key.endswith(".json")]
        newest = max(marks, key=lambda key: _update(Path(key)), default=None)
        if newest is None or (here is not None and _update(here) >= _update(Path(newest))):
            return
        checkpoint = self.directory / newest.removesuffix(".json")
        store.download(checkpoint.name, checkpoint)
        _mark(checkpoint).write_bytes(store.read(newest))


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.json")


def _update(checkpoint: Path) -> int:
    match = NAME.match(checkpoint.name)
    return int(match[1]) if match else -1


def _files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


class StopRequest:
    """Whether this training was asked to stop: by SIGTERM, or by a file that the launching process writes.

    Args:
        file: Path of that file; None = only the signal.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file, self._signalled = file, False
        self._before: Any = None

    def __bool__(self) -> bool:
        return self._signalled or (self.file is not None and self.file.exists())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def __enter__(self) -> StopRequest:
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:
            self._before = None  # Only the main thread may listen to signals.
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


class Timer:
    """Tells when a checkpoint is due.

    Args:
        minutes: Between two checkpoints.
    """

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.restart()

    def restart(self) -> None:
        """Counts from now."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self._since >= self.seconds
