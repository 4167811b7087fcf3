"""Dense candidates: encodes the corpus into an index of its own, and searches it exactly for the training queries."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_retriever import files
from llm_retriever.bm25.sparse import Ranking
from llm_retriever.data.collection import Collection
from llm_retriever.settings import IndexSettings, as_dict

if TYPE_CHECKING:
    from llm_retriever.encoders.interface import Encoder
    from llm_retriever.indexing.index import Index
    from llm_retriever.indexing.workers import Load

QUERIES_AT_ONCE = 4096  # each search reads the whole index once
PROCESSOR_PASSAGES = 100_000
"""Encoding more passages than this without a GPU is worth a warning."""


class DenseIndex:
    """Searches the passages of a collection with a dense encoder; `dense_index` makes one.

    Args:
        encoder: Encodes the queries.
        index: Holds the passages as the same encoder sees them.
        dtype: Stored precision of the vectors.
    """

    def __init__(self, encoder: Encoder, index: Index, dtype: str) -> None:
        self._encoder, self._index, self._dtype = encoder, index, dtype

    def search(self, queries: Mapping[str, str], depth: int) -> Iterator[tuple[str, Ranking]]:
        """Yields the query id and its at most `depth` passages with their scores, best first.

        The search is exact. Scores are inner products, for normalised encoders cosines; equal ones stand in descending
        order of the passage ids. Memory does not grow with the number of queries.
        """
        names = iter(queries)
        while some := list(itertools.islice(names, QUERIES_AT_ONCE)):
            vectors = self._encoder.encode_queries([queries[name] for name in some])
            scores, ids = self._index.search(vectors, depth)
            for name, passages, values in zip(some, ids, scores, strict=True):
                yield name, list(zip(passages, values.tolist(), strict=True))

    def parameters(self, depth: int) -> dict[str, Any]:
        """Describes all that decides the rankings, for manifests."""
        return {
            "encoder": self._encoder.name,
            "identity": self._encoder.identity(),
            "depth": depth,
            "dimension": self._encoder.dimension,
            "precision": self._encoder.precision,
            "dtype": self._dtype,
            "search": "exact",
        }


@contextlib.contextmanager
def dense_index(load: Load, collection: Collection, directory: Path, settings: IndexSettings) -> Iterator[DenseIndex]:
    """Yields a collection that an encoder has encoded, ready to be searched.

    The vectors lie in `directory` until the block ends without an exception. When it is killed or fails they stay, and
    the next run with the same encoder, collection and settings takes up what is there: finished shards, or all of it.
    With a `shards_uri` they lie there instead, and are left there.

    Args:
        load: Loads the encoder, here and where several processes are to encode there too.
        collection: What to search.
        directory: Where the vectors may lie meanwhile: passages · dimension · 2 or 4 bytes.
        settings: How passages become vectors.
    """
    encoder = load()  # a wrong name is told before anything heavy is imported
    from llm_retriever.indexing.build import write_index
    from llm_retriever.indexing.index import Index

    settled = {name: value for name, value in as_dict(settings).items() if name != "processes"}
    path = directory / files.digest([encoder.identity(), encoder.precision, collection.fingerprint, settled])[:16]
    directory.mkdir(parents=True, exist_ok=True)
    for other in directory.iterdir():
        if path.name not in other.name:
            shutil.rmtree(other, ignore_errors=True)
    if not path.exists():
        _warn_without_gpu(collection.passage_count)
        write_index(encoder, collection, path, settings, load=load)
    yield DenseIndex(encoder, Index.open(path, encoder), settings.dtype)
    shutil.rmtree(directory)


def _warn_without_gpu(passages: int) -> None:
    import torch

    if passages > PROCESSOR_PASSAGES and not torch.cuda.is_available():
        warning = (
            f"dense mining: no GPU is visible, so the processor encodes all {passages:,} passages, which takes long"
        )
        print(f"{warning}; use a machine with GPUs and the GPU image", file=sys.stderr, flush=True)
