"""A store that is a directory."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_retriever.errors import InputError
from llm_retriever.files import drafts
from llm_retriever.stores.interface import Entry, Store, files_below, in_parallel, safe_key


class LocalStore(Store):
    """A store that is a directory; made by the first write."""

    def __init__(self, directory: str | Path) -> None:
        super().__init__(str(directory).rstrip("/") or "/")
        self.directory = Path(directory).expanduser()

    def list(self, prefix: str = "") -> builtins.list[Entry]:
        """Lists all files below a folder, by key."""
        folder = self._path(prefix)
        if not folder.is_dir():
            return []
        start = f"{safe_key(prefix)}/" if safe_key(prefix) else ""
        return [self._entry(start + name, folder / name) for name in files_below(folder)]

    def _entry(self, key: str, path: Path) -> Entry:
        status = path.stat()
        return Entry(key, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}", status.st_mtime)

    def exists(self, key: str) -> bool:
        """Whether there is a file of this key."""
        return self._path(key).is_file()

    def read(self, key: str) -> bytes:
        """Returns the content of a file."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise InputError("no such file", file=self.uri_of(key), hint="check the path") from None
        except PermissionError:
            raise self._refused(self._path(key)) from None

    def read_tagged(self, key: str) -> tuple[bytes, str] | None:
        """Returns the content of a file and its SHA-256; None if there is no such file."""
        if not self.exists(key):
            return None
        content = self.read(key)
        return content, hashlib.sha256(content).hexdigest()

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Writes a file under a temporary name and renames it."""
        path = self._path(key)
        with self._drafting([path]) as token, self._draft(path, token, only_if_absent) as draft:
            draft.write_bytes(data)

    def replace(self, key: str, data: bytes, tag: str) -> None:
        """Writes a file under its lock, if its content has this SHA-256."""
        path = self._path(key)
        self._make_folder(path.parent)
        try:
            with drafts.exclusive(path):
                stored = self.read_tagged(key)
                if stored is None or stored[1] != tag:
                    raise FileExistsError(self.uri_of(key))
                self.write(key, data)
        except PermissionError:
            raise self._refused(path) from None

    def delete(self, prefix: str) -> None:
        """Removes a file or a folder, if there is one."""
        path = self._path(prefix)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _send(self, transfers: Sequence[tuple[Path, str]], moved: Callable[[int], None]) -> None:
        self._copy_all([(source, self._path(key)) for source, key in transfers], moved)

    def _receive(self, transfers: Sequence[tuple[Entry, Path]], moved: Callable[[int], None]) -> None:
        self._copy_all([(self._path(entry.key), target) for entry, target in transfers], moved)

    def _duplicate(self, transfers: Sequence[tuple[Entry, str]], moved: Callable[[int], None]) -> None:
        self._copy_all([(self._path(entry.key), self._path(key)) for entry, key in transfers], moved, link=True)

    def _copy_all(
        self, pairs: Sequence[tuple[Path, Path]], moved: Callable[[int], None], *, link: bool = False
    ) -> None:
        """Copies files; with `link`, by hard links where the file system allows it."""

        def copy(pair: tuple[Path, Path]) -> None:
            source, target = pair
            with self._draft(target, token) as draft:
                if not (link and _linked(source.resolve(), draft)):
                    shutil.copyfile(source, draft)
                moved(draft.stat().st_size)

        with self._drafting([target for _, target in pairs]) as token:
            in_parallel(copy, pairs)

    @contextlib.contextmanager
    def _drafting(self, paths: Sequence[Path]) -> Iterator[str]:
        """Yields the token of drafts of these files; removes what killed processes have left of them."""
        for folder in {path.parent for path in paths}:
            self._make_folder(folder)
        with contextlib.ExitStack() as stack:
            try:
                token = stack.enter_context(drafts.drafting(*paths))
            except PermissionError:
                raise self._refused(paths[0]) from None
            yield token

    @contextlib.contextmanager
    def _draft(self, path: Path, token: str, only_if_absent: bool = False) -> Iterator[Path]:
        draft = drafts.draft_of(path, token)
        try:
            yield draft
            if only_if_absent:
                os.link(draft, path)
            else:
                draft.replace(path)
        except PermissionError:
            raise self._refused(path) from None
        except IsADirectoryError:
            raise InputError("there is a directory of this name", file=path, hint="use another name") from None
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except PermissionError:
            raise self._refused(folder) from None
        except (FileExistsError, NotADirectoryError):
            raise InputError("a file is in the way of this directory", file=folder, hint="use another path") from None

    def _path(self, key: str) -> Path:
        return self.directory / safe_key(key)

    def _refused(self, path: Path) -> InputError:
        return InputError("access is refused", file=path, hint="check owner and mode of the directory")


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
