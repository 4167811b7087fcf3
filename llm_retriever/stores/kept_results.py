"""Keeps finished results in a directory or at an s3:// prefix, for whoever needs the same again.

A result lies in a folder that one writer alone uses, `<name>/<random>`. Its mark `<name>.json`, written last and by one
writer only, names that folder, and every file with its size and SHA-256. What has no mark was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.stores.interface import joined, manifest_of, verify
from llm_retriever.stores.opening import open_store


class KeptResults:
    """The results below one URI.

    Args:
        uri: A directory or s3:// prefix; nothing is contacted or made yet.

    Raises:
        InputError: The URI is of another kind.
    """

    def __init__(self, uri: str) -> None:
        self.store = open_store(uri)

    def take(self, name: str, directory: Path) -> bool:
        """Copies a result into a directory, which appears when all of it is there and has its checksums.

        A damaged result is removed.

        Args:
            name: Name of the result; tells all that decides it.
            directory: Is made, or replaced.

        Returns:
            Whether there was one.

        Raises:
            InputError: The store cannot be used.
        """
        mark = self._mark(name)
        if mark is None:
            return False
        try:
            self._check_sizes(mark)
            with files.atomic_directory(directory) as draft:
                self.store.download(mark["folder"], draft)
                _check_bytes(draft, mark, self.store.uri_of(mark["folder"]))
        except _DamagedError as damage:
            print(f"{self.store.uri_of(name)} is damaged, and is made anew: {damage}", file=sys.stderr, flush=True)
            self.discard(name)
            return False
        return True

    def keep(self, name: str, directory: Path) -> bool:
        """Copies a directory to where `take` finds it.

        Args:
            name: Name of the result.
            directory: Complete.

        Returns:
            False where another writer was faster, whose result stays.

        Raises:
            InputError: The store cannot be used.
        """
        folder = f"{name}/{uuid.uuid4().hex[:12]}"
        try:
            text = json.dumps({"folder": folder, **manifest_of(directory)}, indent=2)
            self.store.upload(directory, folder)
            self.store.write(f"{name}.json", text.encode(), only_if_absent=True)
        except FileExistsError:
            self.store.delete(folder)
            return False
        except BaseException:
            with contextlib.suppress(Exception):
                self.store.delete(folder)
            raise
        return True

    def discard(self, name: str) -> None:
        """Removes a result, its mark first."""
        mark = self._mark(name) or {}
        self.store.delete(f"{name}.json")
        if mark.get("folder"):
            self.store.delete(mark["folder"])

    def _mark(self, name: str) -> dict[str, Any] | None:
        """Reads the mark of a result, {} where it cannot be read; None = there is none."""
        if not self.store.exists(f"{name}.json"):
            return None
        try:
            mark = json.loads(self.store.read(f"{name}.json"))
            {row["name"]: (row["size"], row["sha256"]) for row in mark["files"]}
            whole = mark["folder"].startswith(f"{name}/")
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        return mark if whole else {}

    def _check_sizes(self, mark: dict[str, Any]) -> None:
        """Notices most damage before anything is fetched."""
        if not mark:
            raise _DamagedError("its mark cannot be read")
        sizes = {entry.key: entry.size for entry in self.store.list(mark["folder"])}
        for row in mark["files"]:
            size = sizes.get(joined(mark["folder"], row["name"]))
            if size != row["size"]:
                raise _DamagedError(f"{row['name']} has {size or 0:,} bytes instead of {row['size']:,}")


class _DamagedError(Exception):
    """A result is not what its mark says."""


def _check_bytes(directory: Path, mark: dict[str, Any], source: str) -> None:
    try:
        verify(directory, mark, source)
    except InputError as error:
        raise _DamagedError(error.problem) from None
