"""Records which queries a retriever was trained on, without their texts: a digest of each, beside its card.

A later run that compares with the retriever reads them: a query that only one of two was trained on favours that one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_retriever import files
from llm_retriever.data.text_digests import HALF, Digests, text_digests
from llm_retriever.errors import InputError

TRAINING_QUERIES_FILE = "training_queries.npy"


def digests(texts: Iterable[str]) -> Digests:
    """Digests queries, uint64 [queries, 2]: over the text, letter case and white space aside."""
    return text_digests(" ".join(text.split()).casefold() for text in texts)


def write_training_queries(directory: Path, texts: Iterable[str]) -> None:
    """Writes the digests of training queries, each once and sorted; takes 16 bytes of memory a query, and again to sort.

    Args:
        directory: Directory of the retriever.
        texts: Read once.
    """
    listed = np.unique(digests(texts), axis=0)
    with files.atomic_file(directory / TRAINING_QUERIES_FILE) as draft, draft.open("wb") as file:
        np.save(file, listed, allow_pickle=False)


def read_training_queries(directory: Path) -> Digests | None:
    """Reads the digests in a retriever's directory, uint64 [queries, 2]; None if an earlier version made it.

    Raises:
        InputError: The file is not one of digests.
    """
    path = directory / TRAINING_QUERIES_FILE
    if not path.exists():
        return None
    try:
        found: NDArray[Any] = files.mapped_array(path)
    except (ValueError, EOFError):
        found = np.empty(0)
    if found.ndim != 2 or found.shape[1] != 2 or found.dtype != HALF:
        raise InputError("holds no digests of queries", file=path, hint="restore that retriever")
    return found


def were_trained_on(listed: Digests, texts: Iterable[str]) -> NDArray[np.bool_]:
    """Tells which of some queries a retriever was trained on, bool [queries].

    Args:
        listed: The digests of the retriever.
        texts: The queries.
    """
    asked = digests(texts)
    near = listed[np.isin(listed[:, 0], asked[:, 0])]
    known = {row.tobytes() for row in near}
    return np.array([row.tobytes() in known for row in asked], dtype=np.bool_)


def favour(split: str, count: int, queries: int) -> str:
    """States that the version in production knows queries of a split from its training.

    >>> favour("dev", 36, 500)
    '36 of 500 queries of dev were in the training of the version in production alone, which favours it.'
    """
    were = "was" if count == 1 else "were"
    return (
        f"{count:,} of {queries:,} queries of {split} {were} in the training of the version in production "
        "alone, which favours it."
    )
