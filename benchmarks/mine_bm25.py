"""Mining against pyserini's `batch_search` alone, on the same queries, depth and processors, in one run.

    python benchmarks/mine_bm25.py COLLECTION [--depth 200] [--threads 0] [--queries 0]

COLLECTION is the output of prepare_corpus, or any source that prepare_corpus reads. `mine` does more than search: it
starts Java, indexes, makes the runs of the evaluation splits, removes positives by id and text, draws and writes.
The target is a ratio of at most 1.2.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_retriever.bm25.sparse import SparseIndex
from llm_retriever.data.collection import MANIFEST_FILE, Collection
from llm_retriever.data.preparation import prepare
from llm_retriever.mining.negatives import TRAINING_SPLIT, mine
from llm_retriever.settings import CorpusSettings, MiningSettings

TARGET = 1.2
QUERIES_AT_ONCE = 1000


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--threads", type=int, default=0, help="0 = one per processor")
    parser.add_argument("--peer", metavar="ANSWER", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer is not None:
        given.peer.write_text(json.dumps(peer(given.collection, given.depth, given.threads)))
        return
    with tempfile.TemporaryDirectory() as scratch, collection(given.collection, Path(scratch)) as directory:
        compare(directory, given.depth, given.threads, Path(scratch))


@contextmanager
def collection(source: Path, scratch: Path) -> Iterator[Path]:
    """The collection, prepared first where `source` is not one."""
    if not (source / MANIFEST_FILE).exists():
        prepare(CorpusSettings(uri=str(source)), scratch / "collection")
        source = scratch / "collection"
    yield source


def compare(directory: Path, depth: int, threads: int, scratch: Path) -> None:
    """Runs both and prints seconds and ratios."""
    opened = Collection.open(directory)
    number = len(opened.queries(TRAINING_SPLIT))
    print(f"{number:,} training queries over {opened.passage_count:,} passages, depth {depth}", flush=True)
    index, _ = timed(lambda: only_index(opened, threads))
    theirs = peer_in_its_process(directory, depth, threads, scratch)
    settings = MiningSettings(depth=depth, threads=threads)
    total, processor = timed(lambda: mine(settings, directory, *outputs(scratch)))
    alone = theirs["seconds"]
    print(f"pyserini batch_search alone          {alone:8.1f} s  ({theirs['processor']:.1f} s of processors)")
    print(f"mine, everything                     {total:8.1f} s  ({processor:.1f} s of processors)")
    print(f"  of which: start of Java and index  {index:8.1f} s  (measured by itself)")
    print(f"ratio, everything                    {total / alone:8.2f}    (target: at most {TARGET})")
    print(f"ratio, without Java and index        {(total - index) / alone:8.2f}")
    print(f"ratio of processor time, everything  {processor / theirs['processor']:8.2f}")


def outputs(scratch: Path) -> list[Path]:
    """Where `mine` writes."""
    return [scratch / name for name in ("training_set", "runs", "statistics.md", "picture.html")]


def peer_in_its_process(directory: Path, depth: int, threads: int, scratch: Path) -> dict[str, float]:
    """What `peer` measures, in a process of its own, because Java stays in it."""
    answer = scratch / "peer.json"
    command = [sys.executable, __file__, str(directory), f"--depth={depth}", f"--threads={threads}", f"--peer={answer}"]
    subprocess.run(command, check=True)
    found: dict[str, float] = json.loads(answer.read_text())
    return found


def only_index(opened: Collection, threads: int) -> None:
    """Starts Java, indexes and stops."""
    with SparseIndex(opened, threads=threads) as index:
        index.wait()


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock, and seconds of all processors, children included."""
    before, started = processor_seconds(), time.perf_counter()
    work()
    return time.perf_counter() - started, processor_seconds() - before


def processor_seconds() -> float:
    """Processor time of this process and its ended children so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peer(directory: Path, depth: int, threads: int) -> dict[str, float]:
    """The peer, pyserini as its documentation shows it, on a finished index; only `batch_search` is timed.

    The queries are given a thousand at a time, which is faster for it than all at once: less lies in Java's heap.
    """
    from llm_retriever.bm25 import lucene

    processors = lucene.start_java(threads)
    opened = Collection.open(directory)
    queries = opened.queries(TRAINING_SPLIT)
    names, texts = list(queries), list(queries.values())
    with tempfile.TemporaryDirectory() as index:
        lucene.index_passages(opened.passages(), opened.passage_count, index, processors)
        from pyserini.search.lucene import LuceneSearcher

        searcher = LuceneSearcher(index)
        searcher.set_bm25(0.9, 0.4)

        def search() -> None:
            for start in range(0, len(names), QUERIES_AT_ONCE):
                part = slice(start, start + QUERIES_AT_ONCE)
                searcher.batch_search(texts[part], names[part], k=depth, threads=processors)

        seconds, processor = timed(search)
    return {"seconds": seconds, "processor": processor}


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
