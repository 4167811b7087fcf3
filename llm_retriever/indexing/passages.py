"""Records which passages an index holds, without their texts: a digest of each one's title and text, in order.

A passage is the same if its title and text are; its id and its place in the corpus may be others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever import files
from llm_retriever.data.collection import Collection, Passage
from llm_retriever.data.text_digests import HALF, Digests, text_digests
from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import HINT, PassagesFile
from llm_retriever.progress import Progress

PASSAGES_FILE = "passages.npy"
PASSAGES_AT_ONCE = 4096


def digests(passages: Iterable[Passage]) -> Digests:
    """Digests passages, uint64 [passages, 2]: over title and text."""
    return text_digests(f"{len(passage.title)}:{passage.title}{passage.text}" for passage in passages)


def write_passages(collection: Collection, directory: Path) -> PassagesFile:
    """Writes the digests of a collection's passages, 16 bytes each; memory does not grow with them.

    Args:
        collection: Is read once.
        directory: Directory of the index. A file that an earlier run completed there is taken as it is.

    Returns:
        What the manifest says of the file.

    Raises:
        InputError: The collection has not as many passages as it says.
    """
    path = directory / PASSAGES_FILE
    if not path.exists():
        with files.atomic_file(path) as draft:
            _write(collection, draft)
    return PassagesFile(PASSAGES_FILE, files.sha256_of_file(path))


def _write(collection: Collection, path: Path) -> None:
    count, written = collection.passage_count, 0
    header = {"descr": np.lib.format.dtype_to_descr(HALF), "fortran_order": False, "shape": (count, 2)}
    spans = (range(at, min(at + PASSAGES_AT_ONCE, count)) for at in range(0, count, PASSAGES_AT_ONCE))
    with path.open("wb") as file, Progress("list passages", count, "passages") as progress:
        np.lib.format.write_array_header_1_0(file, header)
        for part in collection.spans(spans):
            file.write(digests(part).tobytes())
            written += len(part)
            progress.update(len(part))
    if written != count:
        raise InputError(
            f"the collection has {written:,} passages, not {count:,}",
            file=collection.directory,
            hint="prepare the collection again",
        )


def read_passages(directory: Path, entry: PassagesFile | None, count: int) -> Digests:
    """Maps the digests of an index from its file, uint64 [count, 2].

    Args:
        directory: Directory of the index.
        entry: What the manifest says of the file.
        count: Passages.

    Raises:
        InputError: There are none, because an earlier version made the index, or the file was changed.
    """
    if entry is None:
        raise unlisted(directory)
    path = directory / entry.file
    if not entry.is_intact(directory):
        raise InputError("is missing or does not have its checksum", file=path, hint=HINT)
    listed: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if listed.shape != (count, 2) or listed.dtype != HALF:
        raise InputError(f"holds {listed.dtype} {list(listed.shape)}, not a digest a passage", file=path, hint=HINT)
    return listed


def unlisted(index: Path) -> InputError:
    """Returns the error of an index of an earlier version."""
    return InputError("the index does not say which passages it holds", file=index, field="passages", hint=HINT)
