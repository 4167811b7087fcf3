"""Which passages an index holds, without their collection: a digest of each one's title and text, in their order.

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
    """Digests of passages, uint64 [passages, 2]: over title and text."""
    return text_digests(f"{len(passage.title)}:{passage.title}{passage.text}" for passage in passages)


def write_passages(collection: Collection, directory: Path) -> PassagesFile:
    """Writes the digests of a collection's passages, 16 bytes each; memory does not grow with them.

    Args:
        collection: Is read once.
        directory: Of the index. A file that an earlier run completed there is taken as it is.

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
    count, found = collection.passage_count, 0
    header = {"descr": np.lib.format.dtype_to_descr(HALF), "fortran_order": False, "shape": (count, 2)}
    spans = (range(at, min(at + PASSAGES_AT_ONCE, count)) for at in range(0, count, PASSAGES_AT_ONCE))
    with path.open("wb") as file, Progress("list passages", count, "passages") as progress:
        np.lib.format.write_array_header_1_0(file, header)
        for part in collection.spans(spans):
            file.write(digests(part).tobytes())
            found += len(part)
            progress.update(len(part))
    if found != count:
        raise InputError(
            f"the collection has {found:,} passages, not {count:,}",
            file=collection.directory,
            hint="prepare the collection again",
        )


def read_passages(directory: Path, told: PassagesFile | None, count: int) -> Digests:
    """The digests of an index, mapped from its file, uint64 [count, 2].

    Args:
        directory: Of the index.
        told: What the manifest says of the file.
        count: Passages.

    Raises:
        InputError: There are none, because an earlier version made the index, or the file was changed.
    """
    if told is None:
        raise unlisted(directory)
    path = directory / told.file
    if not told.is_intact(directory):
        raise InputError("is missing or does not have its checksum", file=path, hint=HINT)
    found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if found.shape != (count, 2) or found.dtype != HALF:
        raise InputError(f"holds {found.dtype} {list(found.shape)}, not a digest a passage", file=path, hint=HINT)
    return found


def unlisted(index: Path) -> InputError:
    """What is wrong with an index of an earlier version."""
    return InputError("the index does not say which passages it holds", file=index, field="passages", hint=HINT)
