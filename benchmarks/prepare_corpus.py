"""How long `prepare_corpus` takes, and whether its memory grows with the corpus.

    python benchmarks/prepare_corpus.py BEIR_DIRECTORY [--times 4]

Prepares the directory, and one with the same passages several times over under new ids and with a distinguishing word, each
in a process of its own. The floor is a process that only parses the same JSON lines.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PREPARE = (
    "from llm_retriever.data.preparation import prepare; prepare(CorpusSettings(uri=sys.argv[1]), Path(sys.argv[2]))"
)
PARSE = "[None for line in (Path(sys.argv[1]) / 'corpus.jsonl').open('rb') if not json.loads(line)]"
# The peak is read from the kernel; ru_maxrss would start at the size of the parent before exec.
MEASURED = """
import json, sys, time
from pathlib import Path
from llm_retriever.settings import CorpusSettings
started = time.perf_counter()
{work}
seconds = time.perf_counter() - started
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, peak / 1024]))
"""


def measured(work: str, source: Path, target: Path) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of a piece of work in a process of its own."""
    command = [sys.executable, "-c", MEASURED.format(work=work), str(source), str(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True, text=True)
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def multiplied(source: Path, times: int, target: Path) -> Path:
    """Writes the source with its passages so many times over; judgments stay with the first copies."""
    shutil.copytree(source, target)
    with (source / "corpus.jsonl").open(encoding="utf-8") as rows, (target / "corpus.jsonl").open("a") as more:
        for line in rows:
            row = json.loads(line)
            for i in range(1, times):
                copy = {**row, "_id": f"{row['_id']}-{i}", "text": f"{row['text']} copy{i}"}
                more.write(json.dumps(copy) + "\n")
    return target


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="A directory in BEIR's layout.")
    parser.add_argument("--times", type=int, default=4, help="How many times larger the second corpus is.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        larger = multiplied(given.source, given.times, Path(work) / "larger")
        print(f"{'corpus':>8} {'passages':>10} {'seconds':>8} {'floor':>6} {'ratio':>6} {'peak MiB':>9}")
        peaks = []
        for name, source in (("1x", given.source), (f"{given.times}x", larger)):
            passages = sum(1 for _ in (source / "corpus.jsonl").open("rb"))
            floor, _ = measured(PARSE, source, Path(work))
            seconds, peak = measured(PREPARE, source, Path(work) / "collection")
            peaks.append(peak)
            print(f"{name:>8} {passages:>10,} {seconds:>8.2f} {floor:>6.2f} {seconds / floor:>6.1f} {peak:>9.1f}")
    print(f"peak memory, {given.times}x / 1x: {peaks[1] / peaks[0]:.2f}")


if __name__ == "__main__":
    main()
