"""The tables of the pages are those of the evaluations that are kept, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import results


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_tables_of_a_page_are_made_of_what_is_kept(page: str) -> None:
    text = (results.ROOT / page).read_text(encoding="utf-8")
    assert results.MARKERS.search(text)
    assert results.MARKERS.sub(results._filled, text) == text


def test_every_kept_result_says_how_it_was_made() -> None:
    for path in results.KEPT.rglob("*.json"):
        kept = json.loads(path.read_text())
        assert kept["command"].startswith("make ")
        assert len(kept["commit"]) == 10
        for split in kept["splits"].values():
            for system in split["per_query"]:
                values = list(results.per_query(split, system).values())
                assert np.mean(values) == pytest.approx(split["systems"][system]["ndcg@10"], abs=1e-4)


def evaluation(values: dict[str, list[float]], seed: int) -> dict[str, Any]:
    per_query = {name: {f"q{i}": value for i, value in enumerate(row)} for name, row in values.items()}
    systems = {name: {"ndcg@10": float(np.mean(row)), "recall@100": 0.5} for name, row in values.items()}
    return {
        "lineage": {"stages": [{"settings": {"seed": seed}}]},
        "costs": {"training_seconds": 90.0},
        "splits": {"test": {"queries": len(values["retriever"]), "systems": systems, "per_query": per_query}},
    }


def test_runs_that_differ_in_their_seed_become_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "KEPT", tmp_path / "kept")
    draw = np.random.default_rng(1)
    lexical = list(draw.uniform(0.2, 0.6, 60))
    for method, shift in (("none", 0.0), ("ql", 0.1)):
        for seed in (1, 2, 3):
            row = [value + shift + draw.normal(0, 0.01) for value in lexical]
            hybrid = [value + 0.2 for value in lexical]
            run = tmp_path / f"{method}-{seed}"
            run.mkdir()
            content = evaluation({"retriever": row, "hybrid": hybrid, "BM25": lexical}, seed)
            (run / "evaluation.json").write_text(json.dumps(content))
            results.add("made-up", method, run, "make run")
    lines = results.table("made-up").strip().splitlines()
    assert len(lines) == 5
    assert lines[2].startswith(f"| BM25 | {np.mean(lexical):.3f} | 0.500 |")
    none, ql = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[3:])
    assert none[0] == "none"
    assert none[3] == ""
    assert ql[3].startswith("+0.1")
    assert ql[3].endswith("0.001")
    assert float(ql[4].partition(",")[0]) == pytest.approx(0.1, abs=0.005)
    assert results.table("made-up", "test") == results.table("made-up")
    with pytest.raises(SystemExit, match="made-up has no split dev"):
        results.table("made-up", "dev")
    assert ql[-1] == "1, 2, 3"
    assert "±" in ql[1]
    assert ql[-2] == "1.5"
