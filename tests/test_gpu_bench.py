"""The GPU benchmark's rehearsal: the same script on the processor at tiny sizes, everything once and all rates."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import once, results, run, steps
from llm_retriever.methods import ADAPTATIONS, METHODS
from llm_retriever.metrics.measures import parse_measures, score_queries


@pytest.mark.slow
def test_the_rehearsal_does_everything_once_and_measures_every_rate(tmp_path):
    command = [sys.executable, run.__file__, "--out", str(tmp_path), "--device", "cpu", "--tiny"]
    done = subprocess.run(
        [*command, "--only", "once", "rates", "--seconds", "once=240", "rates=240"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("once", "rates")}
    items: dict[str, Any] = found["once"] | found["rates"]
    assert {name: figures["failed"] for name, figures in items.items() if "failed" in figures} == {}
    assert all(len(figures) > 1 for figures in items.values())
    assert all(math.isfinite(value) for f in items.values() for value in f.values() if isinstance(value, float))
    assert {f"adapt by {name}" for name in ADAPTATIONS} | {f"tune by {name}" for name in METHODS} <= set(items)
    for name in METHODS:
        for precision, tolerance in once.TOLERANCE.items():
            assert items[f"vectors of {name}"][f"{precision}_apart"] <= tolerance
    assert items["resume after SIGTERM"]["code"] == 143
    assert items["resume after SIGTERM"]["updates"] == once.UPDATES
    for shape in ("Llama-2-7B", "Qwen3-0.6B"):
        for work in steps.BUILDERS:
            assert items[f"{shape}: {work}"]["tokens_per_second"] > 0
            assert 0 < items[f"{shape}: {work}"]["share"] < 1.5
            assert f"| rates | {shape}: {work} |" in done.stdout
        assert items[f"{shape}: shared prefix, encode"]["least_cosine"] > 0.99
    assert items["Qwen3-0.6B: encode, against sentence-transformers"]["least_cosine"] > 0.99
    assert not Path(tmp_path / "results.json").exists()


def test_ndcg_without_trec_eval_is_that_of_trec_eval():
    ranking, grades = [f"p{i}" for i in range(12)], {"p1": 1, "p4": 3, "p9": 2, "p11": 3, "other": 1, "p2": 0}
    run = {"q": {passage: float(-rank) for rank, passage in enumerate(ranking)}}
    scores = score_queries(parse_measures("ndcg@10"), {"q": grades}, run)
    (expected,) = scores.values()
    assert results.ndcg(ranking, grades) == pytest.approx(expected["q"])
