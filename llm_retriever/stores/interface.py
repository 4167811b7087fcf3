"""The interface of a store, and the checks of every store: keys that stay below it, complete transfers, checksums."""

from __future__ import annotations

import abc
import builtins
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files.drafts import is_draft
from llm_retriever.progress import Progress

MANIFEST = "published.json"
PARALLEL_FILES = 8
_MEGABYTE = 1_000_000
# A transfer below both takes moments; nobody wants a progress line for it.
_SILENT_BYTES, _SILENT_FILES = 64 * _MEGABYTE, 500


class Entry(NamedTuple):
    """One stored object.

    Attributes:
        key: Its name relative to the store, with "/" between folders.
        size: Bytes.
        etag: Changes when the content changes; comparable only within one store.
        modified: When it was written, in seconds since 1970, by the store's clock.
    """

    key: str
    size: int
    etag: str
    modified: float


class Store(abc.ABC):
    """A tree of objects below one URI.

    Keys and prefixes are relative to the store. A prefix is a folder: "a" means "a/…" and not "ab". Every failure that
    the user can mend (no such bucket, access refused, nothing there) is an `InputError` that names the URI.

    Args:
        uri: Where the store's root is, without a slash at its end.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    @abc.abstractmethod
    def list(self, prefix: str = "") -> builtins.list[Entry]:
        """Lists all objects below a prefix, by key; empty where there is nothing."""

    @abc.abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object of this key."""

    @abc.abstractmethod
    def read(self, key: str) -> bytes:
        """Returns the content of a small object.

        Raises:
            InputError: There is no such object.
        """

    def read_object(self, key: str, hint: str) -> dict[str, Any]:
        """Reads a small object as a JSON object; errors are those of `read` and `object_of`."""
        return object_of(self.read(key), self.uri_of(key), hint)

    @abc.abstractmethod
    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Returns the content of a small object and its tag, which `replace` takes; None if there is no such object."""

    @abc.abstractmethod
    def write(self, key: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Writes a small object atomically; readers see the old content or the new.

        Raises:
            FileExistsError: `only_if_absent` and there is one; of several such writers exactly one succeeds.
        """

    @abc.abstractmethod
    def replace(self, key: str, data: bytes, tag: str) -> None:
        """Writes a small object in place of the one that `read_tagged` gave, as `write` does.

        Raises:
            FileExistsError: It is not that one any more; of several such writers exactly one succeeds.
        """

    @abc.abstractmethod
    def delete(self, prefix: str) -> None:
        """Removes the object of this key and all objects below this prefix, if any."""

    @abc.abstractmethod
    def _send(self, transfers: Sequence[tuple[Path, str]], moved: Callable[[int], None]) -> None:
        """Copies files to keys, in parallel; calls `moved` with the bytes of every part."""

    @abc.abstractmethod
    def _receive(self, transfers: Sequence[tuple[Entry, Path]], moved: Callable[[int], None]) -> None:
        """Copies objects to files, in parallel; calls `moved` with the bytes of every part."""

    @abc.abstractmethod
    def _duplicate(self, transfers: Sequence[tuple[Entry, str]], moved: Callable[[int], None]) -> None:
        """Copies objects to other keys of this store, in parallel and without their bytes passing through here."""

    def uri_of(self, key: str = "") -> str:
        """Full URI of a key."""
        return f"{self.uri}/{key}" if key else self.uri

    def upload(self, directory: str | Path, prefix: str = "") -> builtins.list[str]:
        """Copies all files of a directory below a prefix and returns their keys; partial files of killed writers stay.

        Raises:
            InputError: There is no such directory, or it holds no file.
        """
        directory = Path(directory)
        names = files_below(directory)
        if not names:
            raise InputError("no files to upload", file=directory, hint="give a directory that holds files")
        transfers = [(directory / name, joined(prefix, name)) for name in names]
        size = sum(path.stat().st_size for path, _ in transfers)
        with TransferProgress(f"upload to {self.uri_of(safe_key(prefix))}", size, len(transfers)) as progress:
            self._send(transfers, progress.moved)
        return [key for _, key in transfers]

    def download(self, prefix: str, directory: str | Path, *, only: Callable[[str], bool] | None = None) -> None:
        """Copies all objects below a prefix into a directory, and verifies them where the prefix has a manifest.

        Every file appears under its name only when complete. Other files of the directory stay.

        Args:
            prefix: What to copy; "" is the whole store.
            directory: Made if need be.
            only: Chooses by name (relative to `prefix`); None takes all.

        Raises:
            InputError: There is nothing, a key would leave the directory, or a file is not what its manifest says.
        """
        directory = Path(directory)
        entries = self._checked_names(prefix, only)
        transfers = [(entry, directory / name) for name, entry in entries.items()]
        for parent in {path.parent for _, path in transfers}:
            parent.mkdir(parents=True, exist_ok=True)
        size = sum(entry.size for entry, _ in transfers)
        with TransferProgress(f"download {self.uri_of(safe_key(prefix))}", size, len(transfers)) as progress:
            self._receive(transfers, progress.moved)
        if self.exists(joined(prefix, MANIFEST)):
            verify(directory, json.loads(self.read(joined(prefix, MANIFEST))), self.uri_of(safe_key(prefix)), only)

    def copy(self, source: str, target: str, *, only: Callable[[str], bool] | None = None) -> None:
        """Copies all objects below a prefix to another one of this store; S3 itself does it, and a directory by hard links.

        Args:
            source: What to copy.
            target: Where to; what is there under the same names is replaced.
            only: Chooses by name (relative to `source`); None takes all.

        Raises:
            InputError: There is nothing, or access is refused.
        """
        entries = self._checked_names(source, only)
        transfers = [(entry, joined(target, name)) for name, entry in entries.items()]
        size = sum(entry.size for entry, _ in transfers)
        with TransferProgress(f"copy to {self.uri_of(safe_key(target))}", size, len(transfers)) as progress:
            self._duplicate(transfers, progress.moved)

    def _checked_names(self, prefix: str, only: Callable[[str], bool] | None) -> dict[str, Entry]:
        cut = len(joined(prefix, "x")) - 1
        named = {entry.key[cut:]: entry for entry in self.list(prefix)}
        for name, entry in named.items():
            if not is_safe(name) or any(str(above) in named for above in PurePosixPath(name).parents):
                raise InputError(
                    f"the key {entry.key!r} does not fit into a directory", file=self.uri, hint="rename or remove it"
                )
        chosen = {name: entry for name, entry in named.items() if only is None or only(name)}
        if not chosen:
            raise InputError("nothing is there", file=self.uri_of(safe_key(prefix)), hint="check the URI")
        return chosen


class TransferProgress:
    """Progress in megabytes that several threads feed; silent on small transfers."""

    def __init__(self, what: str, size: int, number: int) -> None:
        quiet = size < _SILENT_BYTES and number < _SILENT_FILES
        self._progress = Progress(what, total=max(1, round(size / _MEGABYTE)), unit="MB", quiet=quiet)
        self._bytes, self._lock = 0, threading.Lock()

    def moved(self, number: int) -> None:
        """Counts bytes; s3transfer takes some back (a negative number) when it repeats a part."""
        with self._lock:
            self._bytes += number
            whole = round(self._bytes / _MEGABYTE) - self._progress.done
            if whole:
                self._progress.update(whole)

    def __enter__(self) -> TransferProgress:
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)


def is_safe(key: str) -> bool:
    """Whether a key, as a path, stays below the directory that it is put into."""
    parts = key.split("/")
    return all(part not in ("", ".", "..") for part in parts) and "\\" not in key and "\0" not in key


def safe_key(key: str) -> str:
    """Strips slashes at the ends of a key.

    Raises:
        InputError: It would leave the store.
    """
    stripped = key.strip("/")
    if stripped and not is_safe(stripped):
        raise InputError(f"{key!r} is not a key below a store", hint='use names between single slashes, without ".."')
    return stripped


def joined(prefix: str, name: str) -> str:
    """Joins a prefix and a name to a key."""
    return "/".join(part for part in (safe_key(prefix), safe_key(name)) if part)


def object_of(data: bytes, uri: str, hint: str) -> dict[str, Any]:
    """Parses a small stored file that holds a JSON object.

    Raises:
        InputError: It holds none; `hint` tells what to do about it.
    """
    try:
        content = json.loads(data)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError("not a JSON object", file=uri, hint=hint)
    return content


def files_below(directory: Path) -> builtins.list[str]:
    """Names of all files of a directory, relative to it and sorted; drafts of unfinished writers are left out."""
    if not directory.is_dir():
        raise InputError("no such directory", file=directory, hint="give an existing directory")
    names_below = []
    for folder, _, names in os.walk(directory, followlinks=True):
        base = Path(folder).relative_to(directory)
        if not any(map(is_draft, base.parts)):
            names_below += [(base / name).as_posix() for name in names if not is_draft(name)]
    return sorted(names_below)


def manifest_of(directory: Path) -> dict[str, Any]:
    """Names, sizes and SHA-256 of all files of a directory, as `verify` reads them."""
    names = [name for name in files_below(directory) if name != MANIFEST]
    sums = _checksums(directory, names)
    rows = [{"name": name, "size": (directory / name).stat().st_size, "sha256": sums[name]} for name in names]
    return {"format": 1, "files": rows}


def verify(directory: Path, manifest: dict[str, Any], source: str, only: Callable[[str], bool] | None = None) -> None:
    """Compares the files of a directory with a manifest.

    Raises:
        InputError: A file is missing, or its bytes are others.
    """
    expected = {row["name"]: row["sha256"] for row in manifest["files"] if only is None or only(row["name"])}
    hint = "fetch it again; if that does not help, publish it again"
    for name in expected:
        if not is_safe(name) or not (directory / name).is_file():
            raise InputError(f"{name!r} is missing", file=source, hint=hint)
    for name, checksum in _checksums(directory, list(expected)).items():
        if checksum != expected[name]:
            raise InputError(f"{name!r} does not have the checksum of the manifest", file=source, hint=hint)


def _checksums(directory: Path, names: Sequence[str]) -> dict[str, str]:
    sizes = {name: (directory / name).stat().st_size for name in names}
    sums = {}

    def work(name: str) -> None:
        sums[name] = files.sha256_of_file(directory / name)
        progress.moved(sizes[name])

    with TransferProgress(f"checksums of {directory.name}", sum(sizes.values()), len(sizes)) as progress:
        in_parallel(work, names)
    return sums


def in_parallel(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Calls `work` with every item in a few threads; the first failure stops the rest and is raised."""
    with ThreadPoolExecutor(PARALLEL_FILES) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
