"""What `pipelines estimate` says against what small runs of the whole pipeline take: seconds, memory, disk, S3, step by step.

    python benchmarks/estimate.py [--passages 500 1000 2000] [--backbone scratch:tiny] [--factor 2] [--work DIR]

Runs the demo's pipeline on generated collections of several sizes, with an S3 server on loopback that what is published,
checkpoints and shards go to. Seconds are compared by their growth from the smallest to the largest run, because a step
also takes some to start; a processor's matrix rate is measured first, on the shapes of the backbone, and stands for a GPU's.
Memory is the peak less that of a process that has only imported what the steps import. Disk is the peak of a step's own
folder. What Kubeflow's launcher would send are the files of a step's outputs. Checkpoints are written every few seconds, so
that there are some. A ratio (measured / estimated) beyond
the factor in either direction is marked, and the exit code is 1 then. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipelines import artifacts, estimate, form, local, presets  # noqa: E402
from pipelines.choice import TRAINING, names_of  # noqa: E402
from pipelines.compilation import compile_pipeline  # noqa: E402
from pipelines.model_shapes import SHAPES, Shape  # noqa: E402
from pipelines.train_retriever import train_retriever  # noqa: E402

WORDS, PASSAGE_WORDS, QUERY_WORDS, EVALUATED = 3000, 60, 6, 100
TOKENS_A_PASSAGE = 200
STEPS = ("fetch_backbone", "adapt_backbone", "tune_retriever", "build_index", "evaluate", "prepare_corpus")
STEPS += ("mine_negatives", "promote")
IMPORTED = "import torch, transformers, peft, accelerate, faiss, resource; print(resource.getrusage(0).ru_maxrss)"
MIB = 2.0**20
CHECKPOINT_MINUTES = 0.1
MARK = re.compile(r"/checkpoint-\d+\.json$")


@dataclass
class Step:
    """What a step took.

    Attributes:
        seconds, memory: Of its process; bytes at the peak.
        disk: Bytes of its own folder at the peak.
        outputs: Bytes of each file of its outputs.
        sent, requests: Bytes and requests to S3, by the step itself.
        checkpoint: Bytes of one, as sent to S3; 0 = there was none.
    """

    seconds: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    outputs: list[float] = field(default_factory=list)
    sent: float = 0.0
    requests: int = 0
    checkpoint: float = 0.0


def write_collection(directory: Path, passages: int) -> None:
    """A BEIR source of drawn words: a training query for every second passage, and `EVALUATED` ones to test."""
    draw = random.Random(17)
    words = ["".join(draw.choices("abcdefghiklmnoprstuvw", k=draw.randint(3, 8))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    texts = [draw.choices(words, weights, k=PASSAGE_WORDS) for _ in range(passages)]
    asked = {"train": range(0, passages, 2), "test": range(1, 2 * EVALUATED, 2)}
    (directory / "qrels").mkdir(parents=True)
    rows = [{"_id": f"p{n}", "title": "", "text": " ".join(text)} for n, text in enumerate(texts)]
    queries = []
    for split, numbers in asked.items():
        lines = ["query-id\tcorpus-id\tscore"]
        for n in numbers:
            queries.append({"_id": f"q{n}", "text": " ".join(draw.sample(texts[n], QUERY_WORDS))})
            lines.append(f"q{n}\tp{n}\t1")
        (directory / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    for name, content in (("corpus", rows), ("queries", queries)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def matrix_rate(shape: Shape, rows: int = 4096) -> float:
    """FLOP/s of fp32 products of the shape of a feed-forward layer; the median of some."""
    import torch

    one, two = torch.randn(rows, shape.hidden), torch.randn(shape.hidden, shape.inner)
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        for _ in range(20):
            one @ two
        seconds.append(time.perf_counter() - started)
    return 20 * 2 * rows * shape.hidden * shape.inner / sorted(seconds)[len(seconds) // 2]


def imported() -> float:
    """Bytes of a process that has imported what the steps import."""
    command = [sys.executable, "-c", IMPORTED]
    return 1024.0 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Server:
    """An S3 server on loopback that counts what it is sent, by the first part of the key."""

    def __init__(self) -> None:
        from tests.s3_server import S3Server

        self._server = S3Server()
        self.bytes: dict[str, float] = defaultdict(float)
        self.requests: dict[str, int] = defaultdict(int)
        self.marks: dict[str, int] = defaultdict(int)
        os.environ.update(self._server.environment)
        self._server.client().create_bucket(Bucket=self._server.bucket)
        self._server.fault = self._count
        self.uri = f"s3://{self._server.bucket}"

    def _count(self, environ: dict[str, Any]) -> None:
        prefix = parse_qs(environ["QUERY_STRING"]).get("prefix", [""])[0]
        key = environ["PATH_INFO"].split("/", 2)[2:] or [prefix]
        # Checkpoints lie one folder deeper: one for each training.
        place = "/".join((key[0] or prefix).split("/")[: 2 if key[0].startswith("checkpoints") else 1])
        self.requests[place] += 1
        if environ["REQUEST_METHOD"] == "PUT":
            self.bytes[place] += float(environ.get("CONTENT_LENGTH") or 0)
            self.marks[place] += bool(MARK.search(key[0]))

    def take(self) -> dict[str, tuple[float, int, int]]:
        """Bytes, requests and checkpoints by place since the last call, in the order in which they were first seen."""
        found = {place: (self.bytes[place], number, self.marks[place]) for place, number in self.requests.items()}
        for counted in (self.bytes, self.requests, self.marks):
            counted.clear()
        return found


class DiskWatch(threading.Thread):
    """Notes the largest size of every step's folder."""

    def __init__(self, runs: Path) -> None:
        super().__init__(daemon=True)
        self.runs, self.peak, self.ended = runs, defaultdict(float), threading.Event()

    def run(self) -> None:
        """Looks several times a second."""
        while not self.ended.wait(0.2):
            for folder in self.runs.glob("*/*"):
                size = sum(_size(path) for path in folder.rglob("*"))
                self.peak[folder.name] = max(self.peak[folder.name], size)


def _size(path: Path) -> float:
    try:
        return float(path.stat().st_size) if path.is_file() and path.name != "executor_input.json" else 0.0
    except OSError:  # renamed while we look
        return 0.0


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process: a process' peak of memory begins with that of the one that started it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _run(package: Path, root: Path) -> tuple[list[Any], Path]:
    run = local.run_compiled(package, {}, root, cache=False)
    if run.exit_code or run.folder is None:
        raise SystemExit("the pipeline failed")
    return run.records, run.folder


def measured(
    folder: Path, passages: int, server: Server, changes: dict[str, Any]
) -> tuple[dict[str, Step], dict[str, Any]]:
    """Runs the pipeline on so many passages.

    Returns:
        What each step took, and the parameters that it was run with.
    """
    write_collection(folder / "corpus", passages)
    own = {"corpus_uri": str(folder / "corpus"), "backbone_scratch_tokens": TOKENS_A_PASSAGE * passages}
    own |= {"promote_uri": f"{server.uri}/published{passages}", "run_checkpoint_uri": f"{server.uri}/checkpoints"}
    own["run_checkpoint_minutes"] = CHECKPOINT_MINUTES
    given = {**presets.load("demo-scratch"), "run_precision": "fp32", "eval_attention_queries": 0, **own, **changes}
    package = compile_pipeline(train_retriever, folder / "pipeline.yaml", form.folded(given))
    watch = DiskWatch(folder / "build" / "runs")
    watch.start()
    server.take()
    records, made = apart(_run, package, folder / "build")
    watch.ended.set()
    steps = {}
    for record in records:
        name = record.name.replace("_", "-")
        files = [_size(path) for path in (made / name).rglob("*") if path.name != "executor_output.json"]
        steps[record.name] = Step(record.seconds, record.peak_bytes, watch.peak[name], [size for size in files if size])
    sent = server.take()
    steps["promote"].sent, steps["promote"].requests, _ = sent[f"published{passages}"]
    trained = [counted for place, counted in sent.items() if place.startswith("checkpoints/")]
    for name, (size, _, number) in zip(("adapt_backbone", "tune_retriever"), trained, strict=True):
        steps[name].checkpoint = size / number if number else 0.0
    return steps, {**form.defaults(), **given}


def mean_tokens(folder: Path) -> tuple[float, float]:
    """Mean tokens of passages and queries with their prompts, by the retriever that a run made."""
    from llm_retriever.encoders.retriever import Retriever

    (path,) = folder.glob("build/runs/*/tune-retriever/retriever")
    retriever, means = Retriever.load(path), []
    for name, tokenise in (("corpus", retriever.tokenise_passages), ("queries", retriever.tokenise_queries)):
        texts = [json.loads(line)["text"] for line in (folder / "corpus" / f"{name}.jsonl").open()][:500]
        means.append(sum(len(row) for row in tokenise(texts)) / len(texts))
    return means[0], means[1]


def compared(sizes: list[int], work: Path, factor: float, changes: dict[str, Any]) -> int:
    """Runs all sizes and prints the tables; returns how many ratios are beyond the factor."""
    rate = apart(matrix_rate, SHAPES[changes["backbone"]])
    gpu, server = estimate.Gpu(rate, 0.0), Server()
    base = apart(imported)
    print(f"{rate / 1e9:.1f} GFLOP/s in products of the backbone's shape, {estimate.UTILISATION:.0%} of it assumed")
    print(f"{base / MIB:,.0f} MiB after the imports\n")
    found: dict[int, dict[str, Step]] = {}
    expected: dict[int, dict[str, estimate.Cost]] = {}
    for passages in sizes:
        folder = work / str(passages)
        found[passages], given = measured(folder, passages, server, changes)
        passage_tokens, query_tokens = apart(mean_tokens, folder)
        load = estimate.Workload(passages, len(range(0, passages, 2)), EVALUATED, passage_tokens, query_tokens)
        given["run_checkpoint_uri"] = ""  # too short a run for one
        expected[passages] = {cost.step.split()[0]: cost for cost in estimate.estimate(given, load, gpu)}
    table = _Table(factor)
    for name in STEPS:
        small, large = (found[n][name] for n in (sizes[0], sizes[-1]))
        low, cost = (expected[n][name] for n in (sizes[0], sizes[-1]))
        if cost.flop and low.flop:
            seconds = (cost.flop - low.flop) / (rate * estimate.UTILISATION)
            table.row(
                f"{name}: seconds more for {sizes[-1] - sizes[0]} passages", large.seconds - small.seconds, seconds
            )
        if cost.gpu_bytes:
            table.row(f"{name}: MiB above the imports", (large.memory - base) / MIB, cost.gpu_bytes / MIB)
        if large.checkpoint:
            beside = cost.disk_bytes - cost.fetched_bytes - cost.s3_bytes
            table.row(f"{name}: MiB of a checkpoint", large.checkpoint / MIB, beside / 2 / MIB)
        # A short training writes no checkpoint, a longer one has two at a time.
        drafts = large.checkpoint > 0 or not name.endswith(("_backbone", "_retriever"))
        disk = cost.disk_bytes - cost.fetched_bytes if drafts else cost.s3_bytes
        if name != "promote":
            table.row(f"{name}: MiB on disk beside the inputs", large.disk / MIB, disk / MIB)
        sent = large.sent if name == "promote" else sum(large.outputs)
        table.row(f"{name}: MiB to S3", sent / MIB, cost.s3_bytes / MIB)
        own = large.requests or artifacts.uploads([tuple(large.outputs)])
        table.row(f"{name}: requests that send", own, cost.sending)
    print(table.text())
    print("\nseconds of all runs:")
    for name in STEPS:
        print(f"  {name:<16}" + "".join(f"{n:>8,}: {found[n][name].seconds:7.1f} s" for n in sizes))
    return table.beyond


class _Table:
    """Rows of measured, estimated and their ratio."""

    def __init__(self, factor: float) -> None:
        self.factor, self.beyond = factor, 0
        self.lines = ["| | measured | estimated | ratio |", "|---|---|---|---|"]

    def row(self, name: str, real: float, expected: float) -> None:
        """Adds one; a ratio beyond the factor is marked."""
        ratio = real / expected if expected else float("inf")
        off = not 1 / self.factor <= ratio <= self.factor
        self.beyond += off
        self.lines.append(f"| {name} | {real:,.1f} | {expected:,.1f} | {ratio:.2f}{' **off**' if off else ''} |")

    def text(self) -> str:
        """The table, and how many ratios are beyond the factor."""
        return "\n".join(
            [*self.lines, "", f"{self.beyond} of {len(self.lines) - 2} beyond a factor of {self.factor:g}"]
        )


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[500, 1000, 2000], help="(default: %(default)s)")
    parser.add_argument("--backbone", choices=[n for n in SHAPES if n.startswith("scratch")], default="scratch:tiny")
    parser.add_argument("--factor", type=float, default=2.0, help="ratios beyond it are marked (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="keep the runs here")
    parser.add_argument("parameters", nargs="*", metavar="key=value", help="what differs from the demo's")
    given = parser.parse_args()
    changes = {"backbone": given.backbone, **presets.parsed(names_of(TRAINING), given.parameters)}
    with tempfile.TemporaryDirectory() as scratch:
        work = given.work or Path(scratch)
        return 1 if compared(sorted(given.passages), work.absolute(), given.factor, changes) else 0


if __name__ == "__main__":
    sys.exit(main())
