"""A store that is a directory."""

from __future__ import annotations

import builtins
import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llm_retriever.errors import InputError
from llm_retriever.stores.interface import PARTIAL, Entry, Store, files_below, in_parallel, safe_key


class LocalStore(Store):
    """A store that is a directory; made by the first write."""

    def __init__(self, directory: str | Path) -> None:
        super().__init__(str(directory).rstrip("/") or "/")
        self.directory = Path(directory).expanduser()

    def list(self, prefix: str = "") -> builtins.list[Entry]:
        """All files below a folder, by key."""
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
        """The content of a file."""
        try:
            return self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise InputError("no such file", file=self.uri_of(key), mend="check the path") from None
        except PermissionError:
            raise self._refused(self._path(key)) from None

    def write(self, key: str, data: bytes, *, only_if_absent: bool = False) -> None:
        """Writes a file under a temporary name and renames it."""
        with self._draft(self._path(key), only_if_absent) as draft:
            draft.write_bytes(data)

    def delete(self, prefix: str) -> None:
        """Removes a file or a folder, if there is one."""
        path = self._path(prefix)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def _send(self, transfers: Sequence[tuple[Path, str]], moved: Callable[[int], None]) -> None:
        in_parallel(lambda pair: self._copy(pair[0], self._path(pair[1]), moved), transfers)

    def _receive(self, transfers: Sequence[tuple[Entry, Path]], moved: Callable[[int], None]) -> None:
        in_parallel(lambda pair: self._copy(self._path(pair[0].key), pair[1], moved), transfers)

    def _duplicate(self, transfers: Sequence[tuple[Entry, str]], moved: Callable[[int], None]) -> None:
        in_parallel(lambda pair: self._copy(self._path(pair[0].key), self._path(pair[1]), moved, link=True), transfers)

    def _copy(self, source: Path, target: Path, moved: Callable[[int], None], *, link: bool = False) -> None:
        """Copies a file; with `link`, a second name for the same bytes is enough where the file system allows it."""
        with self._draft(target) as draft:
            if not (link and _linked(source.resolve(), draft)):
                shutil.copyfile(source, draft)
            moved(draft.stat().st_size)

    @contextlib.contextmanager
    def _draft(self, path: Path, only_if_absent: bool = False) -> Iterator[Path]:
        draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
        self._make_folder(path.parent)
        try:
            yield draft
            if only_if_absent:
                os.link(draft, path)
            else:
                draft.replace(path)
        except PermissionError:
            raise self._refused(path) from None
        except IsADirectoryError:
            raise InputError("there is a directory of this name", file=path, mend="use another name") from None
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except PermissionError:
            raise self._refused(folder) from None
        except (FileExistsError, NotADirectoryError):
            raise InputError("a file is in the way of this directory", file=folder, mend="use another path") from None

    def _path(self, key: str) -> Path:
        return self.directory / safe_key(key)

    def _refused(self, path: Path) -> InputError:
        return InputError("access is refused", file=path, mend="check owner and mode of the directory")


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except OSError:
        return False
    return True
