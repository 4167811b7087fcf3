"""How encoding grows: with the passages, and with the processes.

    python benchmarks/scaling.py MODEL COLLECTION [--passages 1000 10000 100000] [--processes 1 2] [--passage-length 32]

MODEL is a Hugging Face causal LM's directory, COLLECTION the output of prepare_corpus, whose passages are repeated as needed.
Corpora of several sizes are encoded, each in a process of its own with all threads: time per passage and peak memory should
stay the same (below some 10,000 passages memory still grows with the window of 4,096 that is sorted by length, and the start of
a process counts). Then one corpus is shared out among processes of one thread each, which run at once, as pods do with parts of
a corpus: with n of them it should take 1/n of the time. Take a small model: its weights count in every peak.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.data.collection import CORPUS_FILE
from llm_retriever.data.preparation import prepare
from llm_retriever.settings import CorpusSettings

# The peak is read from the kernel; ru_maxrss would start at the size of the parent before exec.
ENCODE = """
import json, sys, time
from pathlib import Path
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.data.collection import Collection
from llm_retriever.indexing.build import write_index
from llm_retriever.methods import method
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.settings import IndexSettings
model, collection, index, length, shard = sys.argv[1:]
card = RetrieverCard.of(method("repllama"), Lineage(model))
retriever = Retriever.on_backbone(model, card, precision="fp32")
settings = IndexSettings(passage_length=int(length), shard_passages=int(shard))
started = time.perf_counter()
write_index(retriever, Collection.open(collection), Path(index), settings)
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, peak / 1024]))
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--passages", type=int, nargs="+", default=[1000, 10_000, 100_000], help="Of each corpus.")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="Among which a corpus is shared out.")
    parser.add_argument("--shared", type=int, default=20_000, help="Passages of that corpus.")
    parser.add_argument("--passage-length", type=int, default=32, help="Tokens of a passage.")
    parser.add_argument("--shard-passages", type=int, default=16_384)
    given = parser.parse_args()
    print(f"{'passages':>10} {'processes':>10} {'seconds':>9} {'ms/passage':>11} {'MiB each':>9} {'efficiency':>11}")
    for number in given.passages:
        show(number, 1, *measured(given, number, 1))
    alone = 0.0
    for processes in given.processes:
        seconds, peak = measured(given, given.shared // processes, processes, threads=1)
        alone = alone or seconds * processes
        show(given.shared, processes, seconds, peak, f"{alone / (seconds * processes):11.0%}")


def show(passages: int, processes: int, seconds: float, peak: float, efficiency: str = "") -> None:
    """Prints a line of the table."""
    each = 1000 * seconds / passages
    print(f"{passages:>10,} {processes:>10} {seconds:9.1f} {each:11.2f} {peak:9,.0f} {efficiency}", flush=True)


def measured(given: argparse.Namespace, passages: int, processes: int, threads: int = 0) -> tuple[float, float]:
    """Seconds and the highest peak (MiB) of processes that run at once, each of which encodes so many passages.

    Args:
        given: Model, collection and settings.
        passages: Of each process.
        processes: How many.
        threads: Of each; 0 = all.
    """
    few = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    with tempfile.TemporaryDirectory() as place:
        collection = resized(given.collection, passages, Path(place) / "collection")
        options = (str(given.passage_length), str(given.shard_passages))
        commands = [
            [sys.executable, "-c", ENCODE, str(given.model), str(collection), f"{place}/index{i}", *options]
            for i in range(processes)
        ]
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, env=os.environ | few, **streams) for command in commands]
        ended = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, ended, strict=True):
        if process.returncode:
            raise SystemExit(errors)
    found = [json.loads(output.splitlines()[-1]) for output, _ in ended]
    return max(seconds for seconds, _ in found), max(peak for _, peak in found)


def resized(collection: Path, passages: int, target: Path) -> Path:
    """Prepares a collection of so many passages, those of another one over and over under new ids, and one query."""
    source = target.with_name("source")
    (source / "qrels").mkdir(parents=True)
    with (source / CORPUS_FILE).open("w", encoding="utf-8") as corpus:
        for number, row in enumerate(itertools.islice(repeated(collection / CORPUS_FILE), passages)):
            # Equal texts would be merged.
            corpus.write(json.dumps({**row, "_id": f"p{number}", "text": f"{number} {row['text']}"}) + "\n")
    (source / "queries.jsonl").write_text('{"_id": "q", "text": "which one"}\n')
    (source / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp0\t1\n")
    prepare(CorpusSettings(uri=str(source)), target)
    return target


def repeated(corpus: Path) -> Iterator[dict[str, str]]:
    """The rows of a corpus, without an end."""
    while True:
        with corpus.open(encoding="utf-8") as rows:
            yield from map(json.loads, rows)


if __name__ == "__main__":
    main()
