"""Kinds of index side by side: recall against the exact search, time, size and what it costs to build them.

    python benchmarks/index_kinds.py [--index DIR] [--passages 20000] [--dimension 256] [--queries 200]

Without `--index`, an index as build_index writes it, vectors are drawn around random centres. Queries are passages moved by
noise as long as `--noise` times the vector. A row is an index and an effort of searching it; `one` is the time of a query
asked alone, `many` of one among all. Memory is that of the vectors or of FAISS's index, without what it is refined from.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench_search import written
from measuring import timed

from llm_retriever.indexing.faiss_kinds import KINDS, add_faiss, plan
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest
from llm_retriever.indexing.streaming import ShardedVectors
from llm_retriever.settings import IndexSettings

EFFORTS: dict[str, tuple[str, tuple[float, ...]]] = {
    "hnsw": ("ef_search", (0.25, 1, 4)),
    "ivf-pq": ("probes", (0.25, 1, 4)),
}
"""What is turned up and down when searching, by kind, and by how much."""
ASKED_ALONE = 50


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--passages", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1, help="That build hnsw.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = given.index or synthetic(scratch / "vectors", given.passages, given.dimension)
        compare(source.absolute(), scratch, given)


def compare(source: Path, scratch: Path, given: argparse.Namespace) -> None:
    """Builds every kind over the shards of `source`, and prints a row for each effort."""
    manifest = dataclasses.replace(Manifest.load(source), kind="flat", faiss=None)
    manifest = dataclasses.replace(manifest, shards_uri=manifest.shards_uri or str(source))
    queries = moved(ShardedVectors(source, manifest), given.queries, given.noise)
    exact = [list(Index(source, manifest).search(queries, depth)[1]) for depth in (10, 100)]
    print(f"{manifest.count:,} passages × {manifest.dimension}, {len(queries):,} queries")
    print(f"{'kind':>7} {'effort':>14} {'recall@10':>9} {'@100':>6} {'one':>9} {'many':>9} {'memory':>10} {'build':>8}")
    for kind in given.kinds:
        settings = IndexSettings(kind=kind, hnsw_threads=given.threads)
        directory = scratch / kind
        directory.mkdir()
        seconds, built = timed(lambda at=directory, told=settings: add_faiss(at, manifest, told))
        index = Index(directory, built)
        size = plan(built.count, built.dimension, settings).search_bytes if built.faiss is None else built.faiss.size
        for effort in efforts(index):
            print(f"{kind:>7} {effort:>14} {row(index, queries, exact)} {size / 2**20:>6,.1f} MiB {seconds:>7.1f}s")


def efforts(index: Index) -> Any:
    """Sets and names each effort in turn."""
    name, factors = EFFORTS.get(index.manifest.kind, ("", (1,)))
    if index.approximate is None or not name:
        yield ""
        return
    usual = index.approximate.parameters[name]
    for factor in factors:
        index.approximate.parameters[name] = max(1, round(usual * factor))
        yield f"{name} {index.approximate.parameters[name]}"


def row(index: Index, queries: np.ndarray, exact: list[list[list[str]]]) -> str:
    """Recall at 10 and 100, and the time of a query alone and among many."""
    index.search(queries[:1], 10)
    recall = []
    for wanted, depth in zip(exact, (10, 100), strict=True):
        many, (_, found) = timed(lambda deep=depth: index.search(queries, deep))
        recall.append(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(wanted, found, strict=True)]))
    alone = queries[:ASKED_ALONE]
    one = timed(lambda: [index.search(query[None], 100) for query in alone])[0] / len(alone)
    times = f"{1000 * one:>6.2f} ms {1000 * many / len(queries):>6.2f} ms"
    return f"{recall[0]:>9.3f} {recall[1]:>6.3f} {times}"


def moved(vectors: ShardedVectors, number: int, noise: float) -> np.ndarray:
    """Some of the vectors, each moved in a random direction."""
    draw = np.random.default_rng(1)
    some = vectors.rows(np.sort(draw.choice(vectors.count, min(number, vectors.count), replace=False)))
    steps = draw.standard_normal(some.shape, np.float32)
    steps *= noise * np.linalg.norm(some, axis=1, keepdims=True) / np.linalg.norm(steps, axis=1, keepdims=True)
    return some + steps


def synthetic(directory: Path, passages: int, dimension: int) -> Path:
    """An index of vectors of length 1 around random centres, twenty to a centre."""
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((max(1, passages // 20), dimension), np.float32)
    vectors = centres[draw.integers(0, len(centres), passages)]
    vectors += 0.7 * draw.standard_normal(vectors.shape, np.float32)
    written(directory, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "fp32", 2)
    return directory


if __name__ == "__main__":
    main()
