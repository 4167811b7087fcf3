"""Verifies an index against its manifest byte by byte: cut, permuted, exchanged or spoilt files are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llm_retriever.errors import InputError
from llm_retriever.indexing.shards import HINT, Manifest, Shard
from llm_retriever.indexing.stored import decoded
from llm_retriever.progress import Progress

ROWS_AT_ONCE = 65_536
TOLD_FROM = 1_000_000
"""Vectors of an index whose check takes long enough to report on."""


def check_index(manifest: Manifest, index: Path, shards: Path) -> None:
    """Compares every file of an index with its manifest, and looks for vectors that are not finite.

    Args:
        manifest: Manifest of the index.
        index: Directory of the manifest.
        shards: Directory of the shards.

    Raises:
        InputError: A file is missing, has other bytes or another number of rows, or a number in it is not finite.
    """
    with Progress("check the index", manifest.count, "vectors", quiet=manifest.count < TOLD_FROM) as progress:
        for shard in manifest.shards:
            _check_shard(shard, shards, manifest)
            progress.update(shard.count)
    for beside in (manifest.faiss, manifest.passages):
        if beside is not None and not beside.is_intact(index):
            raise InputError("is missing or does not have its checksum", file=index / beside.file, hint=HINT)


def _check_shard(shard: Shard, directory: Path, manifest: Manifest) -> None:
    matrix = shard.matrix(directory, manifest.dimension, manifest.dtype)
    shard.passage_ids(directory)
    if damaged := shard.damaged(directory):
        raise InputError("does not have its checksum", file=directory / damaged, hint=HINT)
    for start in range(0, shard.count, ROWS_AT_ONCE):
        finite = np.isfinite(decoded(matrix[start : start + ROWS_AT_ONCE])).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise InputError(f"the vector in row {row:,} is not finite", file=directory / shard.file, hint=HINT)
