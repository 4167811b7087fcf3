"""Searches a published version with hybrid search: the ranking of the evaluation's system `hybrid`, for any question.

from llm_retriever.indexing.hybrid.search import HybridSearcher

HybridSearcher.load("build/published/versions/NAME").search(["how old is the bridge"], k=10)
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llm_retriever.bm25.similarities import bm25
from llm_retriever.bm25.sparse import LUCENE_FOLDER, Ranking, SparseIndex
from llm_retriever.encoders.interface import Encoder
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.indexing.hybrid.published import FOLDER, Published
from llm_retriever.indexing.index import Index
from llm_retriever.metrics.fusion import Ranked, united
from llm_retriever.stores.opening import fetched


class HybridSearcher:
    """Searches with a retriever and BM25 at once; Lucene runs in a process of its own until `close`.

    Args:
        encoder: Encodes the questions.
        index: Filled by that encoder.
        directory: Folder `hybrid` of an evaluation of that retriever on the index's collection.
        threads: Threads of Lucene; 0 = one per processor.

    Raises:
        InputError: The folder is of another retriever or collection, or is damaged; or there is no Java.
    """

    def __init__(self, encoder: Encoder, index: Index, directory: Path, *, threads: int = 0) -> None:
        self._encoder, self._index, self._published = encoder, index, Published.load(directory)
        self._published.check(directory, index.manifest.card, index.manifest.collection)
        self._open = contextlib.ExitStack()
        # Whoever forgets to close it leaves no process behind.
        self.close = weakref.finalize(self, self._open.close)
        language, lucene = self._published.language, directory / LUCENE_FOLDER
        sparse = SparseIndex(None, threads=threads, language=language, directory=lucene)
        self._lucene = self._open.enter_context(sparse)

    @classmethod
    def load(
        cls, version: str | Path, *, precision: Literal["auto", "bf16", "fp32"] = "auto", threads: int = 0
    ) -> HybridSearcher:
        """Opens a published version.

        Args:
            version: Its directory or s3:// prefix, `REGISTRY/versions/NAME`.
            precision: Arithmetic of the retriever.
            threads: Threads of Lucene; 0 = one per processor.

        Raises:
            InputError: It is no version, or has nothing for hybrid search.
        """
        uri = str(version).rstrip("/")
        with contextlib.ExitStack() as stack:
            folders = ("retriever", "index", f"evaluation/{FOLDER}")
            retriever, index, hybrid = (stack.enter_context(fetched(f"{uri}/{folder}")) for folder in folders)
            encoder = Retriever.load(retriever, precision=precision)
            made = cls(encoder, Index.open(index, encoder), hybrid, threads=threads)
            made._open.push(stack.pop_all())
        return made

    def __enter__(self) -> HybridSearcher:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[tuple[str, float]]]:
        """Returns the first `k` passages of every question with their fused scores, best first.

        Both systems are searched as deep as the evaluation did, whatever `k` is: the scores depend on it. So ask many
        questions at once.
        """
        if not queries:
            return []
        published = self._published
        vectors = self._encoder.encode_queries(list(queries), length=published.query_length)
        scores, ids = self._index.search(vectors, published.depth)
        texts = {str(number): text for number, text in enumerate(queries)}
        rankings = self._lucene.search(texts, published.bm25_depth, bm25(**published.bm25))
        dense = (Ranked.of(passages, values.tolist()) for passages, values in zip(ids, scores, strict=True))
        lexical = (_first(ranking, published.depth) for _, ranking in rankings)
        both = zip(dense, lexical, strict=True)
        return [list(published.fusion.best(united(*pair), k).items()) for pair in both]


def _first(ranking: Ranking, depth: int) -> Ranked:
    """Picks the first passages by score, then by id, both descending, as an evaluation takes them from BM25's run."""
    best = sorted(((score, passage) for passage, score in ranking), reverse=True)[:depth]
    return Ranked.of([passage for _, passage in best], [score for score, _ in best])
