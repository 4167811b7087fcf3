"""Stores shards: in a directory, or at an s3:// prefix that finished shards are sent to one by one.

A shard has a record, a small JSON file that is written last: a shard with a record is whole. All who encode the same
corpus with the same encoder and settings have the same place, and find there what others, or an earlier run, finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files.seal import write_seal
from llm_retriever.indexing.shards import HINT, MANIFEST_FILE, Manifest, Shard
from llm_retriever.stores.local import LocalStore
from llm_retriever.stores.opening import Store, open_store

SENDING = "sending"
"""Folder of a draft in which shards grow that are sent elsewhere."""
ABANDONED_SECONDS = 3600
"""A half-written file that nobody has added to for so long belongs to a killed process."""
EXPIRED_HINT = (
    "build the index anew: in a pipeline with another index_shards_uri or with --no-cache, because the cached build_index "
    "still names these shards"
)


class Place(Protocol):
    """A place that shards are written to."""

    @property
    def uri(self) -> str:
        """Its name in a manifest; "" where the shards lie beside the manifest."""

    def growing(self, number: int) -> Path:
        """Makes and returns the directory that a shard's files are written to."""

    def finished(self, number: int, count: int) -> Shard | None:
        """Returns a shard of `count` passages, if it is here and whole."""

    def accept(self, number: int, shard: Shard) -> None:
        """Takes a shard whose files are complete, and writes its record."""


@dataclass(frozen=True)
class LocalPlace:
    """A directory.

    Attributes:
        directory: Made if need be.
        uri: What a manifest names it by.
    """

    directory: Path
    uri: str = ""

    def growing(self, number: int) -> Path:
        """Returns the directory itself."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory

    def finished(self, number: int, count: int) -> Shard | None:
        """Returns a shard whose files have their checksums; removes drafts of processes killed long ago.

        Files without a record stay: another process may be about to write it, and who encodes the shard replaces them.
        """
        with contextlib.suppress(InputError):
            shard = _shard(files.read_json(self.directory / record_file(number)), count)
            if shard is not None and shard.is_intact(self.directory):
                return shard
        for left in self.directory.glob(f".*-{number:05d}.*.partial"):
            # Another process may have finished it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                    left.unlink()
        return None

    def accept(self, number: int, shard: Shard) -> None:
        """Writes the record."""
        files.write_json(self.directory / record_file(number), dataclasses.asdict(shard))


@dataclass(frozen=True)
class RemotePlace:
    """An s3:// prefix.

    Attributes:
        uri: The prefix.
        scratch: A local directory in which a shard grows before it is sent.
    """

    uri: str
    scratch: Path

    @property
    def _store(self) -> Store:
        return open_store(self.uri)

    @functools.cached_property
    def _stored(self) -> set[str]:
        return {entry.key for entry in self._store.list()}

    def growing(self, number: int) -> Path:
        """Makes a directory for this shard alone."""
        directory = self.scratch / f"{number:05d}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def finished(self, number: int, count: int) -> Shard | None:
        """Returns a shard that was there, with its record, when this process looked first."""
        shutil.rmtree(self.scratch / f"{number:05d}", ignore_errors=True)
        name = record_file(number)
        shard = _shard(json.loads(self._store.read(name)), count) if name in self._stored else None
        return shard if shard is not None and {shard.file, shard.ids} <= self._stored else None

    def accept(self, number: int, shard: Shard) -> None:
        """Sends the files, then the record, and removes the local copy."""
        directory = self.growing(number)
        self._store.upload(directory)
        self._store.write(record_file(number), (json.dumps(dataclasses.asdict(shard), indent=2) + "\n").encode())
        shutil.rmtree(directory)


def place_of(shards_uri: str, key: str, draft: Path) -> Place:
    """Returns the place of the shards of this key.

    Args:
        shards_uri: A directory or s3:// prefix, or "" for `draft`.
        key: `encoding_key`.
        draft: The local directory in which the index grows.

    Raises:
        InputError: The URI is of another kind.
    """
    if not shards_uri:
        return LocalPlace(draft)
    store = open_store(f"{shards_uri.rstrip('/')}/{key[:32]}")
    if isinstance(store, LocalStore):
        directory = store.directory.absolute()
        return LocalPlace(directory, str(directory))
    return RemotePlace(store.uri, draft / SENDING)


def record_file(number: int) -> str:
    """Name of a shard's record.

    >>> record_file(3)
    'shard-00003.json'
    """
    return f"shard-{number:05d}.json"


def _shard(content: Any, count: int) -> Shard | None:
    try:
        shard = TypeAdapter(Shard).validate_python(content)
    except ValidationError:
        return None
    return shard if shard.count == count else None


class LocalShards:
    """The shards of an index as local files; copies of remote ones live as long as this object.

    Args:
        manifest: The manifest of the index.
        directory: Where the index lies.

    Attributes:
        directory: Holds the files that the manifest's shards name.

    Raises:
        InputError: The shards lie elsewhere, and are not there.
    """

    def __init__(self, manifest: Manifest, directory: Path) -> None:
        self._copies: tempfile.TemporaryDirectory[str] | None = None
        self.directory = directory
        if not manifest.shards_uri:
            return
        check_shards(manifest)
        store = open_store(manifest.shards_uri)
        if isinstance(store, LocalStore):
            self.directory = store.directory
            return
        self._copies = tempfile.TemporaryDirectory(prefix="shards-")
        self.directory = Path(self._copies.name)
        store.download("", self.directory, only=set(_shard_files(manifest)).__contains__)


def _shard_files(manifest: Manifest) -> list[str]:
    return [name for shard in manifest.shards for name in (shard.file, shard.ids)]


def check_shards(manifest: Manifest) -> None:
    """Raises InputError where the shards of an index lie elsewhere and are not all there.

    Raises:
        InputError: It names the first file that is missing.
    """
    if not manifest.shards_uri:
        return
    store = open_store(manifest.shards_uri)
    stored = {entry.key for entry in store.list()}
    if missing := [name for name in _shard_files(manifest) if name not in stored]:
        raise InputError(
            "no such file; it was removed or has expired", file=store.uri_of(missing[0]), hint=EXPIRED_HINT
        )


@contextlib.contextmanager
def complete(index: Path) -> Iterator[Path]:
    """Yields a directory with all of an index: itself, or a copy with the shards that lie elsewhere beside the manifest.

    Raises:
        InputError: It is no index, or a shard is missing or was changed since.
    """
    if not files.read_json(index / MANIFEST_FILE, hint="give the output of build_index").get("shards_uri"):
        yield index
        return
    manifest = Manifest.load(index)
    with tempfile.TemporaryDirectory(prefix="index-") as name:
        copy, shards = Path(shutil.copytree(index, Path(name) / "index")), LocalShards(manifest, index)
        for shard in manifest.shards:
            if damaged := shard.damaged(shards.directory):
                raise InputError("does not have its checksum", file=f"{manifest.shards_uri}/{damaged}", hint=HINT)
            for file in (shard.file, shard.ids):
                files.link_or_copy(shards.directory / file, copy / file)
        files.write_json(copy / MANIFEST_FILE, dataclasses.replace(manifest, shards_uri="").as_json())
        write_seal(copy)
        yield copy
