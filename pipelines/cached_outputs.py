"""Guards KFP's local cache, which trusts whatever lies where an output was, by the state of the files.

Beside each entry lies a record of the files of its outputs: sizes, and when they were last written to. An entry whose files
are not all there and as they were is none: the step runs again, and so does all that depends on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kfp import dsl
from kfp.local import cache

from llm_retriever import files
from llm_retriever.files.drafts import is_draft
from pipelines.journal import say

RECORD_END = ".files.json"
State = dict[str, list[int]]
"""Size in bytes, and nanoseconds of the last change, by path."""


class CheckedCache(cache.LocalCache):
    """Entries with the state of their files; KFP makes one for every run."""

    def get(self, key: str) -> dict[str, Any] | None:
        """Returns the outputs of a task; None where there are none, or one of their files is gone or was changed."""
        outputs = super().get(key)
        if outputs is None:
            return None
        try:
            recorded = json.loads(self._record(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        difference = _difference(recorded, state(outputs))
        if difference is not None:
            say(f"{difference} since it was cached: it is made anew")
            return None
        return outputs

    def put(self, key: str, outputs: dict[str, Any]) -> None:
        """Keeps the outputs of a task; the record first, so that an entry never lacks it."""
        files.write_json(self._record(key), state(outputs))
        super().put(key, outputs)

    def _record(self, key: str) -> Path:
        return Path(self.cache_root) / f"{key}{RECORD_END}"


def state(outputs: dict[str, Any]) -> State:
    """State of all files of a task's outputs on this machine, with shards that an output names elsewhere."""
    stamps: State = {}
    for path in _paths(outputs):
        for file in _files(path):
            status = file.stat()
            stamps[str(file)] = [status.st_size, status.st_mtime_ns]
    return stamps


def _paths(outputs: dict[str, Any]) -> Iterator[Path]:
    for value in outputs.values():
        for artifact in value if isinstance(value, list) else [value]:
            if isinstance(artifact, dsl.Artifact) and "://" not in artifact.uri:
                yield Path(artifact.uri)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield from [path] if path.exists() else []
        return
    for folder, folders, names in os.walk(path):
        folders.sort()
        own = [Path(folder, name) for name in sorted(names) if not is_draft(name)]
        yield from (file for file in own if file.exists())
    for name in ("manifest.json", "part.json"):
        yield from _shards(path / name)


def _shards(file: Path) -> Iterator[Path]:
    """Shards that an index, or an encoded part, names in a directory elsewhere."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    place, shards = content.get("shards_uri") or "://", content.get("shards", [])
    if "://" in place:
        return
    for shard in shards.values() if isinstance(shards, dict) else shards:
        for name in (shard["file"], shard["ids"]):
            if (Path(place) / name).exists():
                yield Path(place) / name


def _difference(recorded: State, now: State) -> str | None:
    for path in sorted(recorded.keys() | now.keys()):
        if path not in now:
            return f"{path} is gone"
        if path not in recorded:
            return f"{path} was added"
        if recorded[path] != now[path]:
            return f"{path} was changed"
    return None
