"""Resolves a name to an encoder: a row of the table, a row with weights of one's own, or a directory that describes itself."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from llm_retriever.encoders.interface import Encoder
from llm_retriever.encoders.rows import Part, Row, Wiring
from llm_retriever.encoders.table import TABLE
from llm_retriever.errors import InputError
from llm_retriever.models.card import CARD_FILE
from llm_retriever.models.model_files import CONFIG_FILE, DESCRIPTION_FILES, WEIGHTS_INDEX
from llm_retriever.stores import hub
from llm_retriever.stores.opening import fetched

if TYPE_CHECKING:
    from llm_retriever.encoders.published import PublishedEncoder
    from llm_retriever.encoders.retriever import Retriever

MODULES_FILE = "modules.json"
_FILES = (
    *DESCRIPTION_FILES,
    WEIGHTS_INDEX,
    "*.safetensors",
    "adapter_config.json",
    "vocab.txt",
    "spiece.model",
    "*/config.json",
)


def load(name: str, *, device: str | None, precision: str) -> Encoder:
    """Loads the encoder of a name; see `llm_retriever.encoders.load`."""
    head, equals, places = name.partition("=")
    if equals and head in TABLE:
        row = TABLE[head]
        with _given(row, places.split(",")) as directories:
            return _wired(row, directories, device, precision)
    head, at, revisions = name.partition("@")
    if head in TABLE:
        row = TABLE[head]
        encoder = _wired(row, published(row, revisions.split(",") if at else []), device, precision)
        encoder.table_row = name
        return encoder
    _check_exists(name)
    with fetched(name) as directory:
        return _described(name, directory, device, precision)


def check(name: str) -> None:
    """Raises InputError for what cannot be loaded, so far as it shows offline; see `llm_retriever.encoders.check`."""
    head, equals, places = name.partition("=")
    if equals and head in TABLE:
        if "://" not in places:
            with _given(TABLE[head], places.split(",")):
                pass
        return
    head, at, revisions = name.partition("@")
    if head in TABLE:
        commits = revisions.split(",") if at else []
        if commits or not _packaged(TABLE[head]):
            pinned(TABLE[head], commits)
        return
    _check_exists(name)
    if "://" not in name:
        _check_described(name, Path(name))


def _check_exists(name: str) -> None:
    if "://" not in name and not Path(name).exists():
        head = name.partition("@")[0]
        near = difflib.get_close_matches(head, TABLE, n=3, cutoff=0.3)
        raise InputError(
            "neither a published encoder nor a directory",
            file=name,
            field="encoder",
            hint=(f"did you mean {' or '.join(near)}? " if near else "") + "llm-retriever encoders list",
        )


def _wired(row: Row, directories: list[Path], device: str | None, precision: str) -> PublishedEncoder | Retriever:
    if isinstance(row.wiring, Wiring):
        from llm_retriever.encoders.published import PublishedEncoder

        return PublishedEncoder.load(row, row.wiring, directories, device=device, precision=precision)
    from llm_retriever.encoders import llm

    return llm.load(row, row.wiring, directories, device=device, precision=precision)


@contextlib.contextmanager
def _given(row: Row, places: list[str]) -> Iterator[list[Path]]:
    """Yields directories of a row's parts, from one place for all of them or one for each."""
    with contextlib.ExitStack() as stack:
        directories = [stack.enter_context(fetched(place)) for place in places]
        parts = [part.name for part in row.parts]
        of_an_llm = not isinstance(row.wiring, Wiring)
        if len(directories) == 1 and len(parts) > 1:
            folders = [directories[0] / name for name in parts]
            merged = of_an_llm and (directories[0] / CONFIG_FILE).is_file()
            directories = directories if merged else [folder for folder in folders if folder.is_dir()]
            wrong = not merged and len(directories) != len(parts)
        else:
            wrong = len(directories) != len(parts) and not of_an_llm
        if wrong:
            raise InputError(
                f"{row.name} consists of {' and '.join(parts)}",
                file=",".join(places),
                field="encoder",
                hint=f"give {row.name}={','.join(name.upper() for name in parts)}"
                + (f" or a directory with {' and '.join(f'{name}/' for name in parts)}" if len(parts) > 1 else ""),
            )
        yield directories


def published(row: Row, revisions: list[str]) -> list[Path]:
    """Finds directories of a row's parts: of the package that has them, or downloaded at pinned commits.

    Args:
        row: A row of the table.
        revisions: Commits in place of the table's, in the order of the parts; "" = the table's.

    Raises:
        InputError: A commit is not known, the hub does not give the files, or they are not safetensors.
    """
    if not revisions and (packaged := _packaged(row)):
        return [packaged]
    return [_downloaded(row, part, revision) for part, revision in zip(row.parts, pinned(row, revisions), strict=True)]


def _packaged(row: Row) -> Path | None:
    """Finds the directory of a row whose model an installed package has."""
    spec = importlib.util.find_spec(row.package) if row.package else None
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def pinned(row: Row, revisions: list[str]) -> list[str]:
    """Resolves the commits of a row's parts; arguments are those of `published`.

    Raises:
        InputError: A commit is not known, or there are more than parts.
    """
    if len(revisions) > len(row.parts):
        raise InputError(
            f"{row.name} has {len(row.parts)} models, not {len(revisions)}", field="encoder", hint=_pinned_form(row)
        )
    named = [*revisions, *[""] * (len(row.parts) - len(revisions))]
    commits = [revision or part.revision for part, revision in zip(row.parts, named, strict=True)]
    for part, revision in zip(row.parts, commits, strict=True):
        if not hub.COMMIT.fullmatch(revision):
            raise InputError(
                f"{revision!r} can move or is cut short" if revision else f"no commit of {part.id} is known here",
                file=row.name,
                field="revision",
                hint=f"{hub.PIN}, as {_pinned_form(row)}; or weights, as {row.name}=DIRECTORY",
            )
    return commits


def _pinned_form(row: Row) -> str:
    """Formats a row with the commits of its parts; one that the table has may be left empty."""
    return f"{row.name}@" + ",".join(part.name.upper() for part in row.parts)


def _downloaded(row: Row, part: Part, revision: str) -> Path:
    directory = hub.snapshot(part.id, revision, _FILES)
    folders = {head.folder for head in row.wiring.heads} if isinstance(row.wiring, Wiring) else set()
    for folder in ["", *sorted(folders)]:
        if not any((directory / folder).glob("*.safetensors")):
            raise InputError(
                f"the hub has no safetensors of it at {revision[:8]}",
                file=f"{part.id}/{folder}".rstrip("/"),
                hint=f"hf download {part.id} --revision {revision} --local-dir DIR; "
                f"llm-retriever encoders convert DIR OUT; {row.name}=OUT",
            )
    return directory


def _described(name: str, directory: Path, device: str | None, precision: str) -> Encoder:
    """Loads an encoder by what lies in its directory."""
    from llm_retriever.encoders.retriever import MODEL_DIRECTORY, Retriever

    _check_described(name, directory)
    if (directory / CARD_FILE).is_file():
        if (directory / MODEL_DIRECTORY).is_dir():
            return Retriever.load(directory, device=device, precision=precision)
        return Retriever.merged(directory, device=device, precision=precision)
    from llm_retriever.encoders import sentences

    row, wiring, model = sentences.understood(directory, Path(name.rstrip("/")).name)
    from llm_retriever.encoders.published import PublishedEncoder

    return PublishedEncoder.load(row, wiring, [model], device=device, precision=precision)


def _check_described(name: str, directory: Path) -> None:
    if not any((directory / file).is_file() for file in (CARD_FILE, MODULES_FILE)):
        raise InputError(
            f"the directory does not say how it encodes (there is neither {CARD_FILE} nor {MODULES_FILE})",
            file=name,
            field="encoder",
            hint=f"name the row that it is wired like, as ROW={name}",
        )
