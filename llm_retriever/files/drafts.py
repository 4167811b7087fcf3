"""Drafts, files and directories that are being written: temporary names, and recognising those left over.

A draft of NAME is `.NAME.TOKEN.partial` beside it. While it is written, its process holds a lock on `.TOKEN.lock` in the
same directory. A draft whose lock is free belongs to a process that was killed, on whatever machine: process ids say
nothing across pods, which count them for themselves.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import re
import shutil
import sys
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

PARTIAL, LOCK = ".partial", ".lock"
REPLACED = ".replaced"
"""Ends the name of what was there before, while a draft takes its place."""
ABANDONED_SECONDS = 86_400
"""Drafts without a lock (of an earlier release, or on a file system without locks) are left alone for so long."""
_LOCK = re.compile(r"\.(?P<token>[0-9a-f]{12})\.lock")
# Earlier releases took process and thread ids for a token; s3transfer adds eight characters while it downloads.
_DRAFT = re.compile(
    r"\.(?P<name>.+?)\.((?P<token>[0-9a-f]{12})|\d{1,7}(\.\d{9,})?)\.partial(\.replaced|\.[0-9A-Za-z]{8})?"
)
# What a file system answers that has no locks, or whose lock daemon is away.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def is_draft(name: str) -> bool:
    """Whether a file or directory of this name is a draft or a lock, and no content.

    >>> is_draft(".model.0123456789ab.partial"), is_draft(".0123456789ab.lock"), is_draft("model.partial")
    (True, True, False)
    """
    return name.startswith(".") and (name.endswith((PARTIAL, LOCK)) or bool(_DRAFT.fullmatch(name)))


@contextlib.contextmanager
def drafting(*paths: Path) -> Iterator[str]:
    """Yields the token of drafts of some paths; they count as being written until the block ends.

    What killed processes have left of the same paths is removed first.

    Args:
        paths: In existing directories.
    """
    names = collections.defaultdict[Path, set[str]](set)
    for path in paths:
        names[path.parent].add(path.name)
    token = uuid.uuid4().hex[:12]
    with contextlib.ExitStack() as held:
        for folder in names:
            _remove_leftovers(folder, names[folder])
            held.enter_context(_held(folder / f".{token}{LOCK}"))
        yield token


def draft_of(path: Path, token: str, end: str = "") -> Path:
    """Temporary name of a path; with the end `REPLACED`, that of what was there before."""
    return path.with_name(f".{path.name}.{token}{PARTIAL}{end}")


def _remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Removes the drafts that killed processes have left of files or directories of these names."""
    try:
        existing = [path.name for path in folder.iterdir()]
    except PermissionError:
        return
    drafts = [match for match in map(_DRAFT.fullmatch, existing) if match]
    for draft in drafts:
        if draft["name"] in names:
            _clear(folder / draft[0], folder / f".{draft['token']}{LOCK}", folder / draft["name"])
    tokens = {draft["token"] for draft in drafts}
    for lock in filter(None, map(_LOCK.fullmatch, existing)):
        if lock["token"] not in tokens and _is_old(folder / lock[0]):
            _clear(folder / lock[0], folder / lock[0], folder)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock of a file that several processes change: `.NAME.lock` beside it, which stays there."""
    with path.with_name(f".{path.name}{LOCK}").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warning = "this file system has no locks: let one process at a time change it"
            print(f"{path}: {warning}", file=sys.stderr, flush=True)
        yield


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Creates a lock file, holds its lock, and removes it."""
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # Without a lock, and so without its file, the draft counts as left over only when it is old.
            path.unlink(missing_ok=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _clear(draft: Path, lock_path: Path, target: Path) -> None:
    """Removes a draft of `target` if its writer is gone."""
    try:
        with lock_path.open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _restore_or_remove(draft, target)
            lock_path.unlink(missing_ok=True)
    except FileNotFoundError:
        if _is_old(draft):
            _restore_or_remove(draft, target)
    except OSError:
        return  # It is being written, or is somebody else's.


def _restore_or_remove(draft: Path, target: Path) -> None:
    if draft.name.endswith(REPLACED) and not target.exists():
        draft.rename(target)  # Its writer was killed before the new one had the name.
    else:
        remove(draft)


def _is_old(path: Path) -> bool:
    """Whether nobody has written to a file, or to any file of a directory, for long; False if it is gone."""
    within = path.rglob("*") if path.is_dir() else ()
    try:
        last = max(entry.lstat().st_mtime for entry in (path, *within))
    except FileNotFoundError:
        return False
    return time.time() - last > ABANDONED_SECONDS


def remove(path: Path) -> None:
    """Removes a file or a directory, as far as it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
