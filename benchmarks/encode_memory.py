"""Whether the memory of an encoding process grows with the corpus.

    python benchmarks/encode_memory.py MODEL COLLECTION [--passages 20000] [--times 10] [--passage-length 32]

MODEL is a Hugging Face causal LM's directory, COLLECTION the output of prepare_corpus. Two corpora are made of its passages,
repeated as needed, one with so many times the passages of the other; each is encoded in a process of its own, and the peaks
of resident memory are compared. Take a small model: its weights count in both. The fewer passages the smaller corpus has,
the less of what a window of 4,096 passages needs it shows: below some 10,000 the ratio says nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llm_retriever import files
from llm_retriever.data.collection import CORPUS_FILE, MANIFEST_FILE

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
    parser.add_argument("--passages", type=int, default=20_000, help="Of the smaller corpus.")
    parser.add_argument("--times", type=int, default=10, help="So many times as many has the larger one.")
    parser.add_argument("--passage-length", type=int, default=32, help="Tokens of a passage.")
    parser.add_argument("--shard-passages", type=int, default=16_384)
    given = parser.parse_args()
    peaks = []
    for number in (given.passages, given.passages * given.times):
        with tempfile.TemporaryDirectory() as place:
            collection = resized(given.collection, number, Path(place) / "collection")
            options = (str(given.passage_length), str(given.shard_passages))
            seconds, peak = measured(given.model, collection, Path(place) / "index", *options)
        peaks.append(peak)
        print(
            f"{number:>12,} passages {seconds:8.1f}s {number / seconds:8,.0f} passages/s {peak:8,.0f} MiB", flush=True
        )
    print(f"{given.times} times the corpus takes {peaks[1] / peaks[0]:.3f} times the memory")


def measured(model: Path, collection: Path, index: Path, *options: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of encoding a collection in a process of its own."""
    command = [sys.executable, "-c", ENCODE, str(model), str(collection), str(index), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def resized(collection: Path, passages: int, target: Path) -> Path:
    """Writes a collection of so many passages, without queries: those of another one, over and over under new ids."""
    target.mkdir()
    with (target / CORPUS_FILE).open("w", encoding="utf-8") as corpus:
        for number, row in enumerate(itertools.islice(repeated(collection / CORPUS_FILE), passages)):
            corpus.write(json.dumps({**row, "_id": f"p{number}"}) + "\n")
    manifest = files.read_json(collection / MANIFEST_FILE)
    manifest |= {
        "fingerprint": f"{passages} of {manifest['fingerprint']}",
        "counts": {"passages": passages},
        "files": {CORPUS_FILE: (target / CORPUS_FILE).stat().st_size},
    }
    files.write_json(target / MANIFEST_FILE, manifest)
    return target


def repeated(corpus: Path) -> Iterator[dict[str, str]]:
    """The rows of a corpus, without an end."""
    while True:
        with corpus.open(encoding="utf-8") as rows:
            yield from map(json.loads, rows)


if __name__ == "__main__":
    main()
