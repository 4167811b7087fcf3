"""Checkpoints of a training: where they lie, when one is complete, how they travel to the store and back.

A checkpoint is a directory `checkpoint-<update>` and, written last, its mark `checkpoint-<update>.json` with the size
of every file. What has no mark, or does not agree with it, was interrupted and is never resumed from.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from llm_retriever import files
from llm_retriever.stores.opening import Store, open_store

NAME = re.compile(r"checkpoint-(\d+)")
MARK = re.compile(r"checkpoint-\d+\.json")


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
        complete = [path for path in self.directory.glob("checkpoint-*") if path.is_dir() and self._is_complete(path)]
        return max(complete, key=_update, default=None)

    def newest(self) -> str | None:
        """Name of the newest complete checkpoint, here or in the mirror."""
        here = self.latest()
        names = [here.name] if here else []
        if self.mirror:
            keys = [entry.key for entry in open_store(self.mirror).list()]
            names += [key.removesuffix(".json") for key in keys if MARK.fullmatch(key)]
        return max(names, key=lambda name: _update(Path(name)), default=None)

    def source(self, name: str) -> str:
        """Where `restore` would take a checkpoint from: its directory here, if it is complete, else its URI in the mirror."""
        here = self.directory / name
        return f"{self.mirror}/{name}" if self.mirror and not self._is_complete(here) else str(here)

    def restore(self, name: str | None = None) -> Path | None:
        """Removes what is incomplete, fetches a newer checkpoint from the mirror, and returns the newest one.

        Args:
            name: The one to go on from, as `newest` says it; None asks it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in self.directory.glob("checkpoint-*"):
            if path.is_dir() and not self._is_complete(path):
                shutil.rmtree(path)
        name = name or self.newest()
        if name and not (self.directory / name).exists():
            self._fetch(name)
        return self.latest()

    def contribute(self, checkpoint: Path) -> dict[str, int]:
        """Hook of every machine, once all processes have written their files and before `complete`.

        Returns:
            Names and sizes of the files that it has sent to the mirror.
        """
        return {}

    def complete(self, checkpoint: Path, sent: Mapping[str, int] | None = None) -> None:
        """Marks a checkpoint that is fully written, copies it to the mirror and removes older ones.

        Args:
            checkpoint: Its directory.
            sent: Names and sizes of the files that all machines together have uploaded.
        """
        files.write_json(_mark(checkpoint), {"files": _sizes(checkpoint)})
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
            open_store(self.mirror).delete("")

    def _is_complete(self, checkpoint: Path) -> bool:
        try:
            expected = json.loads(_mark(checkpoint).read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError):
            return False
        return bool(_sizes(checkpoint) == expected)

    def _send(self, checkpoint: Path) -> None:
        store = open_store(self.mirror)
        store.upload(checkpoint, checkpoint.name)
        self._mark_sent(store, checkpoint, _mark(checkpoint).read_bytes())

    def _mark_sent(self, store: Store, checkpoint: Path, mark: bytes) -> None:
        """Writes the mark of what is in the mirror, and removes older ones."""
        old = {match[0] for match in (NAME.match(entry.key) for entry in store.list()) if match}
        # The new mark first, and an old one before its files: whenever this is killed, a complete checkpoint is left.
        store.write(_mark(checkpoint).name, mark)
        for name in old - {checkpoint.name}:
            store.delete(f"{name}.json")
            store.delete(name)

    def _fetch(self, name: str) -> None:
        store, checkpoint = open_store(self.mirror), self.directory / name
        store.download(name, checkpoint)
        _mark(checkpoint).write_bytes(store.read(_mark(checkpoint).name))


class NodeCheckpoints(Checkpoints):
    """The checkpoints of a training on several nodes: each has written a part, only the mirror has all of it.

    Under ZeRO every process writes its own shards, and always its own random state, to the disk of its node.
    """

    def newest(self) -> str | None:
        """Name of the newest checkpoint in the mirror, if it is complete; what is here is never more than a part.

        What has no mark there is removed: it was interrupted, and its files must not become part of another one.
        """
        shutil.rmtree(self.directory, ignore_errors=True)
        store = open_store(self.mirror)
        keys = {entry.key for entry in store.list()}
        for checkpoint in {match[0] for match in (NAME.match(key) for key in keys) if match}:
            if f"{checkpoint}.json" not in keys:
                store.delete(checkpoint)
        name = super().newest()
        if name is None:
            return None
        return name if json.loads(store.read(f"{name}.json"))["files"] == self._listed(store, name) else None

    def restore(self, name: str | None = None) -> Path | None:
        """Fetches all parts of a checkpoint.

        Args:
            name: As the first node's `newest` says it; None = there is none.

        Raises:
            RuntimeError: It was replaced meanwhile; a node that went on by itself would wait for the others for ever.
        """
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        if name:
            self._fetch(name)
            if self.latest() is None:
                raise RuntimeError(f"{self.mirror}/{name} changed while it was fetched")
        return self.latest()

    def contribute(self, checkpoint: Path) -> dict[str, int]:
        """Uploads this node's part, makes room for the next one, and returns what was uploaded."""
        sent = _sizes(checkpoint)
        open_store(self.mirror).upload(checkpoint, checkpoint.name)
        for path in self.directory.glob("checkpoint-*"):
            _remove(path)
        return sent

    def complete(self, checkpoint: Path, sent: Mapping[str, int] | None = None) -> None:
        """Marks a checkpoint that all nodes have uploaded, and removes older ones from the mirror.

        Raises:
            RuntimeError: Something else is there: the checkpoint must not replace one that is whole.
        """
        store, sizes = open_store(self.mirror), dict(sent or {})
        if not sizes or self._listed(store, checkpoint.name) != sizes:
            raise RuntimeError(
                f"{self.mirror}/{checkpoint.name} is not what the nodes have sent: does another training write there?"
            )
        self._mark_sent(store, checkpoint, json.dumps({"files": sizes}, indent=2).encode())

    def _listed(self, store: Store, name: str) -> dict[str, int]:
        """Sizes of all files of a checkpoint in the mirror."""
        return {entry.key.removeprefix(f"{name}/"): entry.size for entry in store.list(name)}


def shared_or_own(directory: Path, mirror: str) -> Checkpoints:
    """Returns the checkpoints of this machine or, where torchrun says that several train together, the shared ones."""
    several = int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1
    return NodeCheckpoints(directory, mirror) if several else Checkpoints(directory, mirror)


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Bytes of every file of a checkpoint, by its name in it."""
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _mark(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.json")


def _update(checkpoint: Path) -> int:
    match = NAME.match(checkpoint.name)
    return int(match[1]) if match else -1


def _files(directory: Path) -> list[Path]:
    return [path for path in sorted(directory.rglob("*")) if path.is_file()]


class StopRequest:
    """Whether this training was asked to stop: by SIGTERM or Ctrl-C, or by a file that the launching process writes.

    A second Ctrl-C ends it at once.

    Args:
        file: Path of that file; None = only the signals.

    Attributes:
        exit_code: 128 + the signal's number, that of SIGTERM where a file asked.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file, self.exit_code, self._signalled = file, 128 + signal.SIGTERM, False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._signalled or (self.file is not None and self.file.exists())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signalled:
            raise KeyboardInterrupt
        self._signalled, self.exit_code = True, 128 + number

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # Only the main thread may listen to signals.
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


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
