"""Metrics of a large run against trec_eval's own code (pytrec_eval) alone on the same data, in one process.

    python benchmarks/metrics.py [--queries 6980] [--depth 1000] [--rounds 3]

The size is that of MS MARCO dev: every query has `depth` passages and one or two relevant ones. The peer is a bare
`RelevanceEvaluator(...).evaluate(run)` with the same measures; ours adds the cutoff of MRR, absent queries, the examples'
ranks and the first passages. All run in one thread and take turns; the best processor time of the rounds counts, so that other
work on the machine matters little. Then the other steps of an evaluation, as shares of the peer's time: reading and writing
the run, and the significance tests.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytrec_eval

from llm_retriever.metrics.measures import parse_measures, score_queries
from llm_retriever.metrics.runs import Run, read_run, write_run
from llm_retriever.metrics.significance import compare
from llm_retriever.reporting.examples import judge

MEASURES = parse_measures("mrr@10,ndcg@10,recall@100,recall@1000")
TREC_NAMES = {"recip_rank", "ndcg_cut.10", "recall.100,1000"}
TARGET = 1.1

Qrels = dict[str, dict[str, int]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=6980)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    qrels, run = made(given.queries, given.depth)
    print(f"{given.queries:,} queries × {given.depth:,} passages")
    seconds = compete(
        {
            "pytrec_eval alone": lambda: pytrec_eval.RelevanceEvaluator(qrels, TREC_NAMES).evaluate(run),
            "score_queries": lambda: score_queries(MEASURES, qrels, run),
            "judge (with what the report shows)": lambda: judge(MEASURES, qrels, run, 1),
        },
        given.rounds,
    )
    peer = seconds["pytrec_eval alone"]
    for name, best in seconds.items():
        print(f"{name:40s} {best:7.2f} s   {best / peer:5.2f} ×")
    print(f"target of score_queries: at most {TARGET} ×")
    others(qrels, run, peer)


def made(queries: int, depth: int) -> tuple[Qrels, Run]:
    """Judgments and a run with float32 scores; most relevant passages stand near the top."""
    random = np.random.default_rng(0)
    scores = -np.sort(-random.random((queries, depth), dtype=np.float32), axis=1)
    qrels: Qrels = {}
    run: Run = {}
    for query in range(queries):
        passages = [str(p) for p in random.choice(8_800_000, depth, replace=False).tolist()]
        relevant = (depth * random.random(1 + int(random.random() < 0.07)) ** 8).astype(int)
        qrels[str(query)] = {passages[i]: 1 for i in relevant.tolist()}
        run[str(query)] = dict(zip(passages, scores[query].tolist(), strict=True))
    return qrels, run


def compete(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Best processor seconds of each task; they take turns."""
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            best[name] = min(best[name], timed(task))
    return best


def timed(task: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    started = time.process_time()
    task()
    return time.process_time() - started


def others(qrels: Qrels, run: Run, peer: float) -> None:
    """Times what else an evaluation does once a run, or once a comparison."""
    ours = score_queries(MEASURES, qrels, run)["ndcg@10"]
    random = np.random.default_rng(1)
    theirs = {query: float(value * random.random()) for query, value in ours.items()}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run.trec"
        rows = [(query, list(ranking.items())) for query, ranking in run.items()]
        steps: dict[str, Callable[[], object]] = {
            "write_run": lambda: write_run(path, rows, "bench"),
            "read_run": lambda: read_run(path),
            "compare (t-test, 100,000 randomisations)": lambda: compare("ndcg@10", ours, {"other": theirs}),
        }
        for name, step in steps.items():
            seconds = timed(step)
            print(f"{name:40s} {seconds:7.2f} s   {seconds / peer:5.2f} ×")


if __name__ == "__main__":
    main()
