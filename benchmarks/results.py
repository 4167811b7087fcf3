"""The tables of docs/results.md, from evaluations that runs wrote.

    python benchmarks/results.py add COLLECTION METHOD build/runs/RUN --command "make run …"
    python benchmarks/results.py write

`add` keeps what the tables need of a run's `evaluation.json` in docs/results/, with the command, the commit and the machine.
`write` puts the tables between the markers of docs/results.md and README.md. Runs of one collection and method that differ in
their seed become one row: means over the seeds; tests are on the means of every query over the seeds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import commit, machine

from llm_retriever import files
from llm_retriever.metrics.conventions import BM25, p_value
from llm_retriever.metrics.significance import paired_t_test

ROOT = Path(__file__).parents[1]
KEPT, PAGE, FIRST_PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md", ROOT / "README.md"
METRIC, RECALL = "ndcg@10", "recall@100"
SYSTEMS = ("retriever", "hybrid", BM25, "backbone")
BASELINE = "none"
"""The method without stage one, which the others are tested against."""
SUMMARY = "summary"
"""The marker of a table of several collections, on the first page."""
SUMMARISED = (("python-docs", "test"), ("medquad", "dev"), ("msmarco-42k", "test"), ("msmarco-42k", "dl19"))
SHOWN = "ql"
"""The method whose rows it shows, beside those without stage one."""
MARKERS = re.compile(
    r"(<!-- results: (?P<collection>[\w-]+)(?: (?P<split>[\w./-]+))? -->\n).*?(<!-- end of results -->)", re.DOTALL
)
"""Where a page has the tables of a collection, or the table of one of its splits."""


def main() -> None:
    """Runs a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    adding = commands.add_parser("add", help="keep a run's figures")
    adding.add_argument("collection")
    adding.add_argument("method")
    adding.add_argument("run", type=Path)
    adding.add_argument("--command", required=True, dest="told", metavar="TEXT", help="that made the run")
    adding.set_defaults(work=lambda given: add(given.collection, given.method, given.run, given.told))
    commands.add_parser("write", help="write the tables").set_defaults(work=lambda given: write())
    given = parser.parse_args()
    given.work(given)


def add(collection: str, method: str, run: Path, command: str) -> None:
    """Keeps the figures of a run."""
    found = next(iter(sorted(run.rglob("evaluation.json"))), None)
    if found is None:
        raise SystemExit(f"{run}: no evaluation.json below")
    content = json.loads(found.read_text(encoding="utf-8"))
    seed = max(int(stage["settings"].get("seed", 0)) for stage in content["lineage"]["stages"])
    target = KEPT / collection / f"{method}-seed-{seed}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        "collection": collection,
        "method": method,
        "seed": seed,
        "command": command,
        "commit": commit(ROOT),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "lineage": content["lineage"],
        "costs": content["costs"],
        "hybrid": {name: value for name, value in content.get("hybrid", {}).items() if name != "curve"},
        "splits": {name: _split(split) for name, split in content["splits"].items()},
    }
    files.write_json(target, kept)
    print(target)


def _split(split: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a split: values of the queries in one line a system, in the order of their ids."""
    kept = {name: values for name, values in split["systems"].items() if name in SYSTEMS}
    ids = list(split["per_query"]["retriever"])
    scores = {name: [split["per_query"][name][query] for query in ids] for name in kept}
    rounded = {name: " ".join(f"{round(value, 4):g}" for value in row) for name, row in scores.items()}
    return {"queries": split["queries"], "systems": kept, "ids": " ".join(ids), "per_query": rounded}


def write() -> None:
    """Writes the tables into both pages."""
    for page in (PAGE, FIRST_PAGE):
        text = page.read_text(encoding="utf-8")
        page.write_text(MARKERS.sub(_filled, text), encoding="utf-8")


def _filled(found: re.Match[str]) -> str:
    content = summary() if found["collection"] == SUMMARY else table(found["collection"], found["split"])
    return f"{found[1]}{content}{found[4]}"


def summary() -> str:
    """The Markdown table of one method, a row a collection and split."""
    names = ("nDCG@10", "queries", "BM25", "tuned alone", "LLM-QL, then tuned", "against tuned alone")
    lines = [f"| {' | '.join((*names, 'LLM-QL and BM25 (hybrid)', 'against BM25'))} |", f"|{'---|' * 8}"]
    for collection, name in SUMMARISED:
        runs = _runs(collection)
        ours, alone = ([run["splits"][name] for run in runs if run["method"] == m] for m in (SHOWN, BASELINE))
        if not ours or not alone:
            continue
        cells = [f"{collection}, {name}", f"{ours[0]['queries']:,}", _mean(ours[:1], BM25, METRIC)]
        cells += [_mean(alone, "retriever", METRIC), _mean(ours, "retriever", METRIC), _p(ours, alone, "retriever")]
        fused, gain = _mean(ours, "hybrid", METRIC), _p(ours, ours, "hybrid", BM25)
        cells += [f"**{fused}**" if gain.startswith("+") and "<" in gain else fused, gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def _runs(collection: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((KEPT / collection).glob("*.json"))]


def table(collection: str, split: str | None = None) -> str:
    """The Markdown tables of a collection, a row a method; of one split, or of all."""
    runs = _runs(collection)
    if not runs:
        return "No run yet.\n"
    methods = sorted({run["method"] for run in runs}, key=lambda name: (name != BASELINE, name))
    if split not in (None, *runs[0]["splits"]):
        raise SystemExit(f"{collection} has no split {split}")
    by_method = {name: [run for run in runs if run["method"] == name] for name in methods}
    return "".join(_split_table(name, by_method) for name in runs[0]["splits"] if split in (None, name))


def _split_table(split: str, by_method: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    first = next(iter(by_method.values()))[0]["splits"][split]
    head = f"`{split}`, {first['queries']:,} queries | nDCG@10 | R@100 | against none | against BM25"
    lines = [f"| {head} | hybrid nDCG@10 | against BM25 | training, minutes | seeds |", f"|{'---|' * 9}"]
    lines.append(_baseline("BM25", first, BM25))
    if "backbone" in first["systems"]:
        lines.append(_baseline("un-tuned backbone", first, "backbone"))
    none = by_method.get(BASELINE)
    for method, runs in by_method.items():
        splits = [run["splits"][split] for run in runs]
        against = (
            "" if method == BASELINE or none is None else _p(splits, [r["splits"][split] for r in none], "retriever")
        )
        lexical = _p(splits, splits, "hybrid", BM25) if "hybrid" in first["systems"] else ""
        minutes = np.mean([run["costs"]["training_seconds"] for run in runs]) / 60
        seeds = ", ".join(str(run["seed"]) for run in runs)
        cells = [method, _mean(splits, "retriever", METRIC), _mean(splits, "retriever", RECALL), against]
        cells += [_p(splits, splits, "retriever", BM25), _mean(splits, "hybrid", METRIC), lexical]
        lines.append(f"| {' | '.join([*cells, f'{minutes:.1f}', seeds])} |")
    return "\n".join(lines) + "\n\n"


def _baseline(name: str, split: Mapping[str, Any], system: str) -> str:
    return f"| {name} | {split['systems'][system][METRIC]:.3f} | {split['systems'][system][RECALL]:.3f} | | | | | | |"


def _mean(splits: Iterable[Mapping[str, Any]], system: str, metric: str) -> str:
    values = [split["systems"][system][metric] for split in splits if system in split["systems"]]
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _p(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], system: str, other: str | None = None
) -> str:
    """The p of the paired t-test over the queries, on means over the seeds."""
    left, right = _means(ours, system), _means(theirs, other or system)
    differences = np.array([value - right[query] for query, value in left.items()])
    sign = "+" if differences.mean() > 0 else "−"
    return f"{sign}{abs(differences.mean()):.3f}, p {p_value(paired_t_test(differences))}"


def _means(splits: Sequence[Mapping[str, Any]], system: str) -> dict[str, float]:
    rows = [per_query(split, system) for split in splits]
    return {query: float(np.mean([row[query] for row in rows])) for query in rows[0]}


def per_query(split: Mapping[str, Any], system: str) -> dict[str, float]:
    """nDCG@10 of every query by a system, as it is kept."""
    values = map(float, split["per_query"][system].split(" "))
    return dict(zip(split["ids"].split(" "), values, strict=True))


if __name__ == "__main__":
    main()
