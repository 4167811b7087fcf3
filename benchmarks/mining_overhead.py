"""Mining with BM25 and a dense encoder against raw Lucene and raw FAISS on the same queries and vectors, in one run.

    python benchmarks/mining_overhead.py COLLECTION [--depth 200] [--threads 0] [--dimension 768]

COLLECTION is the output of prepare_corpus, or any source that prepare_corpus reads. The peers are pyserini's `batch_search`
on a finished index and `faiss.knn` on a finished matrix in memory. `mine` does more: it starts Java, indexes, reads the
corpus, merges, removes positives, equal texts and near duplicates, draws, writes and draws its picture. What encoding
takes, and Java with its index, is measured by itself and taken off; vectors are hashed words, so that it takes little.
The target is a ratio of at most 1.1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from mine_bm25 import collection, only_index, outputs, peer_in_its_process, timed

from llm_retriever import encoders
from llm_retriever.data.collection import Collection, Passage
from llm_retriever.mining.negatives import TRAINING_SPLIT, mine
from llm_retriever.settings import MiningSettings

TARGET = 1.1
BUCKETS = 1 << 15


class HashedWords:
    """An encoder whose vectors are sums of random vectors, one for each word; it counts the seconds that it takes."""

    name, precision, passage_length, query_length = "hashed words", "fp32", 512, 512

    def __init__(self, dimension: int) -> None:
        self.dimension, self.seconds = dimension, 0.0
        self._table = np.random.default_rng(7).standard_normal((BUCKETS, dimension), dtype=np.float32)

    def identity(self) -> str:
        """Of the table."""
        return hashlib.sha256(self._table[0].tobytes()).hexdigest()

    def tokenise_queries(self, texts: Sequence[str], *, length: int | None = None) -> list[list[int]]:
        """A bucket for each word."""
        return [[hash(word) % BUCKETS for word in text.lower().split()[:length]] or [0] for text in texts]

    def tokenise_passages(self, passages: Sequence[Passage | str], *, length: int | None = None) -> list[list[int]]:
        """A bucket for each word."""
        return self.tokenise_queries([p if isinstance(p, str) else p.text for p in passages], length=length)

    def encode_rows(
        self,
        side: str,
        rows: Sequence[Sequence[int]],
        batch_tokens: int,
        report: Callable[[Sequence[int], int], None] = lambda batch, slots: None,
    ) -> np.ndarray:
        """Normalised sums, float32 [rows, dimension]."""
        started = time.perf_counter()
        vectors = np.stack([self._table[np.asarray(row)].sum(axis=0) for row in rows])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.seconds += time.perf_counter() - started
        report(range(len(rows)), sum(map(len, rows)))
        return vectors

    def encode_queries(self, texts: Sequence[str], *, length: int | None = None, progress: bool = False) -> np.ndarray:
        """Vectors of queries."""
        return self.encode_rows("query", self.tokenise_queries(texts), 0)

    def encode_passages(
        self, passages: Sequence[Passage | str], *, length: int | None = None, progress: bool = False
    ) -> np.ndarray:
        """Vectors of passages."""
        return self.encode_rows("passage", self.tokenise_passages(passages), 0)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="0 = one per processor")
    parser.add_argument("--dimension", type=int, default=768)
    given = parser.parse_args()
    if given.threads:
        faiss.omp_set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch, collection(given.collection, Path(scratch)) as directory:
        compare(directory, given.depth, given.threads, HashedWords(given.dimension), Path(scratch))


def compare(directory: Path, depth: int, threads: int, encoder: HashedWords, scratch: Path) -> None:
    """Runs all and prints seconds and ratios."""
    opened = Collection.open(directory)
    queries = list(opened.queries(TRAINING_SPLIT).values())
    print(f"{len(queries):,} training queries, {opened.passage_count:,} passages, depth {depth}", flush=True)
    matrix, asked = encoder.encode_passages(list(opened.passages())), encoder.encode_queries(queries)
    dense, _ = timed(lambda: faiss.knn(asked, matrix, depth, metric=faiss.METRIC_INNER_PRODUCT))
    sparse = peer_in_its_process(directory, depth, threads, scratch)["seconds"]
    index, _ = timed(lambda: only_index(opened, threads))
    encoders.load = lambda name, **_: encoder  # type: ignore[assignment]
    shards = str(scratch / "shards")
    settings = MiningSettings(
        depth=depth, threads=threads, evaluation_depth=1, encoder="hashed words", encoder_shards_uri=shards
    )
    mine(settings, directory, *outputs(scratch))
    encoder.seconds = 0.0
    total, _ = timed(lambda: mine(settings, directory, *outputs(scratch)))
    report(sparse, dense, index, encoder.seconds, total)


def report(sparse: float, dense: float, index: float, encoding: float, total: float) -> None:
    """Prints seconds and ratios."""
    rows: list[tuple[str, Any]] = [
        ("pyserini batch_search alone", sparse),
        ("faiss.knn alone", dense),
        ("start of Java and index", index),
        ("encoding of the queries", encoding),
        ("mine, everything, vectors given", total),
    ]
    for name, seconds in rows:
        print(f"{name:34} {seconds:8.1f} s")
    print(
        f"{'ratio, both with Java and index':34} {(total - encoding) / (sparse + dense + index):8.2f}    (target: {TARGET})"
    )
    print(f"{'ratio, both without':34} {(total - encoding - index) / (sparse + dense):8.2f}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    main()
