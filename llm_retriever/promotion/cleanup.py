"""Cleans up after failed and superseded runs: shards of vectors, and versions that were never completed.

Every index has a folder of its own below `index_shards_uri`, named by 32 hexadecimal digits (`indexing.shard_store`). A
published version has a copy of its shards and does not need the folder; it is spared nevertheless, because the run that
made the version still names it, in Kubeflow's cache and for reruns. What goes are folders of our own naming, with nothing
but our own files in them, that belong to no published version and that nobody has written to for some days.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import MANIFEST_FILE
from llm_retriever.stores.interface import in_parallel
from llm_retriever.stores.opening import Entry, LocalStore, Store, open_store
from llm_retriever.stores.registry import VERSION_FILE, VERSIONS, Registry

FOLDER = re.compile(r"[0-9a-f]{32}")
_SHARD = re.compile(r"vectors-\d{5,}\.npy|ids-\d{5,}\.txt|shard-\d{5,}\.json")
_DRAFT = re.compile(r"\.(vectors|ids|shard)-\d{5,}\.(npy|txt|json)\..+\.partial")
_LOCK = re.compile(r"\.[0-9a-f]{12}\.lock")
_RECORD = re.compile(r"shard-\d{5,}\.json")
_VERSION = re.compile(r"\d{4}-\d\d-\d\d-[0-9a-f]{12}")
_DAY = 86_400
HINT = "restore or remove it"


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of shards, and what is to become of it.

    Attributes:
        name: Below the URI.
        size: Bytes.
        modified: When somebody last wrote to it, in seconds since 1970.
        records: Keys of the records of its complete shards.
        spared: Why it stays; "" if it goes.
    """

    name: str
    size: int
    modified: float
    records: Sequence[str]
    spared: str = ""


def sweep(
    shards_uri: str, published: Iterable[str], *, days: float, delete: bool, now: float | None = None
) -> list[Folder]:
    """Finds the folders that can go, and deletes them where `delete` is set.

    Args:
        shards_uri: Directory or s3:// prefix, as `index_shards_uri` or `mine_encoder_shards_uri`.
        published: URIs of the registries whose versions may have been made of these shards.
        days: How long nobody must have written to a folder.
        delete: Whether to delete; False looks only.
        now: Seconds since 1970; None is the clock.

    Returns:
        All folders of our own naming, those that go (or went) without `spared`.

    Raises:
        InputError: A registry has no version, which is rather a wrong URI than a reason to delete.
    """
    kept = [index for uri in published for index in _published_indexes(uri)]
    store, now = open_store(shards_uri), time.time() if now is None else now
    folders = [_judged(store, name, rows, kept, now - days * _DAY) for name, rows in _folders(store).items()]
    if not delete:
        return folders
    return [folder if folder.spared else _removed(store, folder, now - days * _DAY) for folder in folders]


def _removed(store: Store, folder: Folder, before: float) -> Folder:
    """Removes a folder, unless a run has written to it since it was judged."""
    entries = _all_files(store, folder.name) if isinstance(store, LocalStore) else store.list(folder.name)
    if any(entry.modified > before for entry in entries):
        return dataclasses.replace(folder, spared="was written to lately")
    # Records first: a shard without one is no shard.
    in_parallel(store.delete, folder.records)
    store.delete(folder.name)
    return folder


def clear_abandoned(registry: Registry, days: float, now: float | None = None) -> list[str]:
    """Deletes folders without `version.json` that killed publications and deletions have left in a registry.

    Args:
        registry: Holds them.
        days: How long nobody must have written there.
        now: Seconds since 1970; None is the clock.

    Returns:
        The names of what was deleted.
    """
    before = (time.time() if now is None else now) - days * _DAY
    touched = {registry.alias().version: math.inf}
    for entry in registry.store.list(VERSIONS):
        _, name, *rest = entry.key.split("/")
        modified = math.inf if rest == [VERSION_FILE] else entry.modified
        touched[name] = max(modified, touched.get(name, 0.0))
    old = sorted(name for name, when in touched.items() if when < before and _VERSION.fullmatch(name))
    gone = [name for name in old if _is_abandoned(registry, name, before)]
    for name in gone:
        registry.store.delete(f"{VERSIONS}/{name}")
    return gone


def _is_abandoned(registry: Registry, name: str, before: float) -> bool:
    """Asks again just before deletion: a run that is started again may complete the version that it began."""
    entries = registry.store.list(f"{VERSIONS}/{name}")
    return all(entry.modified < before and not entry.key.endswith(f"/{name}/{VERSION_FILE}") for entry in entries)


def _published_indexes(uri: str) -> list[tuple[str, str, set[str]]]:
    """Name, index folder and shard checksums of every version."""
    registry = Registry(uri)
    versions = registry.versions()
    if not versions:
        raise InputError("no version is published there", file=uri, field="--published", hint="check the URI")
    indexes = []
    for version in versions:
        manifest = registry.store.read_object(f"{version.key}/index/{MANIFEST_FILE}", HINT)
        folder = str(manifest.get("shards_uri", "")).rstrip("/").rpartition("/")[2]
        indexes.append((version.name, folder, {str(shard.get("sha256")) for shard in manifest.get("shards", [])}))
    return indexes


def _folders(store: Store) -> dict[str, list[Entry]]:
    """Groups the files, unfinished ones too, by folder of our own naming."""
    folders: dict[str, list[Entry]] = {}
    for entry in _all_files(store) if isinstance(store, LocalStore) else store.list():
        name, slash, _ = entry.key.partition("/")
        if slash and FOLDER.fullmatch(name):
            folders.setdefault(name, []).append(entry)
    return folders


def _all_files(store: LocalStore, below: str = "") -> Iterable[Entry]:
    """Lists like `LocalStore.list`, but with the drafts of killed writers."""
    for folder, _, names in os.walk(store.directory / below):
        for name in names:
            path = Path(folder, name)
            # A run may just give a draft its name.
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                yield Entry(path.relative_to(store.directory).as_posix(), status.st_size, "", status.st_mtime)


def _judged(
    store: Store, name: str, rows: Sequence[Entry], kept: Sequence[tuple[str, str, set[str]]], before: float
) -> Folder:
    names = {entry.key.partition("/")[2]: entry for entry in rows}
    records = sorted(entry.key for file, entry in names.items() if _RECORD.fullmatch(file))
    folder = Folder(name, sum(row.size for row in rows), max(row.modified for row in rows), records)
    foreign = sorted(file for file in names if not any(kind.fullmatch(file) for kind in (_SHARD, _DRAFT, _LOCK)))
    if foreign:
        return dataclasses.replace(folder, spared=f"holds other files, as {foreign[0]}")
    if folder.modified > before:
        return dataclasses.replace(folder, spared="was written to lately")
    owner = next((version for version, named, _ in kept if named == name), "") or _owner(store, records, kept)
    return dataclasses.replace(folder, spared=f"belongs to the published version {owner}") if owner else folder


def _owner(store: Store, records: Sequence[str], kept: Sequence[tuple[str, str, set[str]]]) -> str:
    """Name of the version whose index consists of all these shards; "" if there is none, as the first record mostly tells."""
    left = list(kept) if records else []
    for record in records:
        checksum = store.read_object(record, HINT).get("sha256")
        left = [one for one in left if checksum in one[2]]
        if not left:
            break
    return left[0][0] if left else ""
