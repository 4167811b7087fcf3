"""Fifteen minutes on a GPU: everything once, rates, results, and a profile of the slowest step.

    python benchmarks/gpu/run.py --out DIR                                 # on a GPU
    python benchmarks/gpu/run.py --out DIR --device cpu --tiny             # the rehearsal
    python benchmarks/gpu/run.py --out DIR --only rates --seconds rates=300

Every block is a process of its own, which begins no item after its time and is ended soon after, and writes DIR/BLOCK.json
after each item; what fails is written down, and the next item goes on. The table of all figures is printed last.

The machine needs torch, transformers, peft, accelerate, safetensors and sentence-transformers in the versions of
pyproject.toml, and pydantic; no network, no DeepSpeed, FAISS, Java or Kubeflow, and no installation of this project. `results`
trains on what --backbone, --collection and --training-set name; with --tiny it makes them itself.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from benchmarks.gpu import record  # noqa: E402 - found by the line above

BLOCKS = {"once": 120.0, "rates": 240.0, "results": 360.0, "profile": 60.0}
"""Seconds of each."""
MODULES = {name: f"benchmarks.gpu.{name}" for name in BLOCKS} | {"profile": "benchmarks.gpu.profile_step"}
GRACE = 20.0
"""Seconds that an item may go on when the block's time is over."""


def main() -> None:
    """Runs the blocks one after the other, and prints the table."""
    given = parsed()
    given.out.mkdir(parents=True, exist_ok=True)
    seconds = BLOCKS | {name: float(value) for name, _, value in (text.partition("=") for text in given.seconds)}
    if given.block:
        block = record.Block(given, given.block, seconds[given.block])
        importlib.import_module(MODULES[given.block]).run(block)
        return
    for name in given.only:
        print(f"{name}: at most {seconds[name]:.0f} s", flush=True)
        start(name, seconds[name], given)
    print(record.table(given.out, given.only))


def parsed() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="For the JSON files, the trace and what is made.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Small models, for a rehearsal.")
    parser.add_argument("--only", nargs="+", choices=BLOCKS, default=list(BLOCKS), metavar="BLOCK")
    parser.add_argument("--seconds", nargs="+", default=[], metavar="BLOCK=N")
    parser.add_argument("--backbone", type=Path, help="results: output of fetch_backbone.")
    parser.add_argument("--collection", type=Path, help="results: output of prepare_corpus.")
    parser.add_argument("--training-set", type=Path, help="results: output of mine_negatives.")
    parser.add_argument("--splits", nargs="+", default=["test"], help="results: to be evaluated.")
    parser.add_argument(
        "--steps", type=int, default=-1, help="results: updates of each training; -1 = the recipe's, or one epoch."
    )
    parser.add_argument("--block", choices=BLOCKS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := {text.partition("=")[0] for text in given.seconds} - set(BLOCKS):
        parser.error(f"no block {', '.join(unknown)}")
    return given


def start(name: str, seconds: float, given: argparse.Namespace) -> None:
    """Runs a block in a process of its own: an error of CUDA spoils the process that it happens in."""
    (given.out / f"{name}.json").unlink(missing_ok=True)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if given.device == "cpu" else {}
    child = subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--block", name],
        env={**os.environ, "PYTHONPATH": paths, **quiet, **hidden},
        start_new_session=True,  # so that what it has started can be ended with it
    )
    try:
        child.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        print(f"{name}: ended after its time", file=sys.stderr)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    main()
