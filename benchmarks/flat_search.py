"""Searching an index against FAISS's flat index alone, on the same vectors and queries.

    python benchmarks/flat_search.py [--passages 42000] [--dimension 256] [--queries 1000] [--dtype fp32] [--apart 1e-7]

FAISS holds a copy of the vectors in memory and returns row numbers. The index settles near-ties exactly, merges shards, and
knows passage ids: `ratio` is the search, `with ids` the search and every id decoded. Both take turns; the best of the rounds
counts. With `--apart`, vectors differ from one another by so little, as those of a hardly trained model do.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from llm_retriever import files
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest, Shard
from llm_retriever.indexing.stored import DTYPES, decoded, encoded
from llm_retriever.methods import method
from llm_retriever.models.card import Lineage, RetrieverCard

CARD = RetrieverCard.of(method("llm-ql"), Lineage("random"), weights="0" * 64)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=42_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--apart", type=float, help="Size of the differences between vectors; without it, any.")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    vectors, queries = unit(given.passages, given.dimension, 0), unit(given.queries, given.dimension, 1)
    if given.apart:
        vectors = (unit(1, given.dimension, 2) + given.apart * vectors).astype(np.float32)
    vectors = decoded(encoded(vectors, given.dtype))
    flat = faiss.IndexFlatIP(given.dimension)
    flat.add(vectors)
    print(f"{given.passages:,} passages × {given.dimension}, {given.dtype}, {given.queries:,} queries")
    print(f"{'depth':>6} {'shards':>6} {'FAISS':>10} {'index':>10} {'ratio':>6} {'with ids':>8}  same top passage")
    with tempfile.TemporaryDirectory() as scratch:
        for shards in (1, 4):
            index = written(Path(scratch) / str(shards), vectors, given.dtype, shards)
            for depth in given.depths:
                compare(flat, index, queries, depth, given.rounds)


def compare(flat: Any, index: Index, queries: np.ndarray, depth: int, rounds: int) -> None:
    """Lets both search in turns and prints the best of each."""
    best = [float("inf")] * 3
    for _ in range(rounds):
        alone, (_, rows) = timed(lambda: flat.search(queries, depth))
        ours, (_, ids) = timed(lambda: index.search(queries, depth))
        decoding, names = timed(lambda found=ids: list(found))
        best = [min(best[0], alone), min(best[1], ours), min(best[2], ours + decoding)]
    same = np.mean([row[0] == int(found[0]) for row, found in zip(rows, names, strict=True)])
    times = f"{best[0]:>9.3f}s {best[1]:>9.3f}s {best[1] / best[0]:>6.2f} {best[2] / best[0]:>8.2f}"
    print(f"{depth:>6} {len(index.manifest.shards):>6} {times}  {same:.1%}")


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and the answer."""
    started = time.perf_counter()
    answer = call()
    return time.perf_counter() - started, answer


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Random vectors of length 1, float32 [rows, dimension]."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def written(directory: Path, vectors: np.ndarray, dtype: str, shards: int) -> Index:
    """An index of the vectors; a passage's id is its row number."""
    directory.mkdir()
    entries = []
    for i, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        file, names = directory / f"vectors-{i:05d}.npy", directory / f"ids-{i:05d}.txt"
        np.save(file, encoded(vectors[rows], dtype))
        names.write_text("".join(f"{row}\n" for row in rows.tolist()))
        digests = files.sha256_of_file(file), files.sha256_of_file(names)
        norm = float(np.linalg.norm(vectors[rows], axis=1).max())
        entries.append(Shard(file.name, names.name, len(rows), *digests, norm, 1, 1, 1.0))
    content = (len(vectors), vectors.shape[1], dtype, tuple(entries), CARD.digest(), "", {}, {}, {})
    files.write_json(directory / "manifest.json", Manifest("flat", "inner_product", *content).as_json())
    return Index.open(directory, CARD)


if __name__ == "__main__":
    main()
