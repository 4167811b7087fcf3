"""Searching shards that do not fit into the memory that is allowed, against FAISS's flat index with all in memory.

    python benchmarks/streaming_search.py [--passages 400000] [--dimension 256] [--queries 1000] [--memory-mib 128]

Each is a process of its own, and they take turns; the best of the rounds counts. `memory` is what the process held at its
peak beyond what it held before it opened the vectors; streaming may hold `--memory-mib` of vectors, and the results. The
files are in the page cache for both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np
import psutil
from flat_search import CARD, timed, unit, written

from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest
from llm_retriever.indexing.streaming import ShardedVectors

WAYS = ("in memory", "streamed")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=400_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--memory-mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        written(index, unit(given.passages, given.dimension, 0), given.dtype, given.shards)
        size = given.passages * given.dimension * 4 / 2**20
        print(f"{given.passages:,} passages × {given.dimension}, {given.dtype}: {size:,.0f} MiB as float32")
        compete(index, given.rounds)


def compete(index: Path, rounds: int) -> None:
    """Runs both ways in turns and prints the best of each."""
    best = {way: (float("inf"), 0.0) for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--index", str(index)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            best[way] = min(best[way], tuple(json.loads(answer)))
    print(f"{'':>10} {'time':>10} {'ratio':>6} {'memory':>12}")
    for way, (seconds, held) in best.items():
        print(f"{way:>10} {seconds:>9.3f}s {seconds / best[WAYS[0]][0]:>6.2f} {held / 2**20:>8,.0f} MiB")


def measured(given: argparse.Namespace) -> tuple[float, float]:
    """Seconds and bytes of one way, the second of two searches."""
    queries = unit(given.queries, given.dimension, 1)
    faiss.knn(queries, queries, 10, metric=faiss.METRIC_INNER_PRODUCT)  # libraries keep their work space
    before = psutil.Process().memory_info().rss
    if given.way == WAYS[0]:
        flat = faiss.IndexFlatIP(given.dimension)
        for _, block in ShardedVectors(given.index, Manifest.load(given.index), 2**24).blocks():
            flat.add(block)
        seconds = [timed(lambda: flat.search(queries, given.depth))[0] for _ in range(2)]
    else:
        index = Index.open(given.index, CARD, memory_bytes=given.memory_mib * 2**20)
        seconds = [timed(lambda: index.search(queries, given.depth))[0] for _ in range(2)]
    return seconds[1], peak() - before


def peak() -> int:
    """Most bytes that this process held at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    np.seterr(all="raise")
    main()
