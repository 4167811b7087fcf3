"""Side by side with the best peers, and with the machine: the table of docs/performance.md.

    make bench                                         # everything, about an hour on two idle cores
    make bench ARGS="--only encode-bf16 --rounds 3"    # a part of it; --list names the parts

Every part is a work that this project and its peers do on the same model, texts and seeds. Each way is a process of its own;
they take turns, A B A B, and the first round only warms up. Shown are medians with the least and the most, the ratio round by
round, and where a model computes, the share of the rate at which the same machine multiplies matrices of the model's shapes,
measured in the same turns. Without --backbone and --collection the demo's are fetched and prepared in build/bench.

sentence-transformers' ONNX and OpenVINO backends need an older transformers than this project: they get a virtual environment
of their own in build/bench/peers, made by pip once. Where that fails, those peers are left out, and it is said.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bench_encoding
import bench_search
import bench_training
from measuring import Spread, Way, commit, machine, ratios, serve, take_turns
from works import MATRIX, OURS, Here, Inputs, Work

ROOT = Path(__file__).parents[1]
KEPT, PAGE, PICTURE = (ROOT / "docs" / name for name in ("performance.json", "performance.md", "performance.svg"))
PACKAGES = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "pyserini", "pytrec-eval-terrier")
LEAST_MEMORY = 100
"""MiB that a peer takes for its work, where memory is worth comparing: what was loaded before does not count."""
START, END = "<!-- bench -->\n", "<!-- end of bench -->"
WORKS: tuple[Work, ...] = (*bench_encoding.WORKS, *bench_training.WORKS, *bench_search.WORKS)


def main() -> None:
    """Measures, prints, and keeps what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", type=Path, help="Output of fetch_backbone.")
    parser.add_argument("--collection", type=Path, help="Output of prepare_corpus, with a split train.")
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "bench")
    parser.add_argument("--passages", type=int, default=768, help="To encode.")
    parser.add_argument("--updates", type=int, default=2, help="Of a training, each time.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[work.name for work in WORKS], metavar="WORK")
    parser.add_argument("--list", action="store_true", help="List the works and end.")
    parser.add_argument("--serve", nargs=2, metavar=("WORK", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = [work for work in WORKS if given.only is None or work.name in given.only]
    if given.list:
        print("\n".join(f"{work.name:14} {work.title}" for work in chosen))
    elif given.serve:
        name, way = given.serve
        here = next(work for work in WORKS if work.name == name).ways[way]
        assert isinstance(here, Here), f"{way} is started by its own command"
        serve(lambda: here.make(Inputs.of(given)))
    else:
        inputs = Inputs.of(given)
        inputs.prepare()
        for work in chosen:
            keep(measured(work, inputs, given.rounds))
        write()


def measured(work: Work, inputs: Inputs, rounds: int) -> dict[str, Any]:
    """Lets all ways of a work take turns; what docs/performance.json keeps of it."""
    print(f"{work.name}: {work.title}", flush=True)
    ways, left_out = started(work, inputs)
    take_turns(ways, rounds)
    row: dict[str, Any] = {"work": work.name, "title": work.title, "target": work.target, "goal": work.goal}
    row |= {"date": datetime.date.today().isoformat(), "machine": machine(), "commit": commit(ROOT)}
    row["versions"] = {name: version(name) for name in PACKAGES}
    row["left_out"] = left_out
    row["ways"] = {name: described(way) for name, way in ways.items()}
    peers = {name: Spread.of(way.seconds()) for name, way in ways.items() if name in work.peers}
    if peers:
        best = min(peers, key=lambda name: peers[name].median)
        row["against"], row["ratio"] = best, ratios(ways[best], ways[OURS])
        held, theirs = (ways[name].answers[-1]["memory"] for name in (OURS, best))
        if theirs >= LEAST_MEMORY:
            row["memory"] = held / theirs
    if MATRIX in ways:
        row["share"] = rate(ways[OURS]) / rate(ways[MATRIX])
    for way in ways.values():
        way.close()
    row["agreement"] = work.agreement(row, inputs) if work.agreement and peers else None
    print(shown(row), flush=True)
    return row


def started(work: Work, inputs: Inputs) -> tuple[dict[str, Way], dict[str, str]]:
    """Starts all ways of a work and lets them warm up; returns those that can do it, and what the others fail of."""
    ways, left_out = {}, {}
    for name, way in work.ways.items():
        try:
            ways[name] = Way(way.command(work, name, inputs))
            problem = ways[name].run().get("useless", "")
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"  {name} failed: {error}", file=sys.stderr)
            problem = "it failed"
        if problem:
            print(f"  {name} is left out: {problem}", file=sys.stderr)
            left_out[name] = problem
            if name in ways:
                ways.pop(name).close()
    return ways, left_out


def described(way: Way) -> dict[str, Any]:
    """Times of a way, and what it says of its last run."""
    return {**way.answers[-1], "seconds": Spread.of(way.seconds()), "rounds": len(way.seconds())}


def rate(way: Way) -> float:
    """Useful floating-point operations a second."""
    return way.answers[-1]["operations"] / Spread.of(way.seconds()).median


def shown(row: dict[str, Any]) -> str:
    """What is printed of a work."""
    lines = []
    for name, way in row["ways"].items():
        tokens = f", {way['tokens'] / way['seconds'][0]:,.0f} tokens/s" if "tokens" in way else ""
        lines.append(f"  {name:34} {Spread(*way['seconds']).shown(3)} s, {way['memory']:,.0f} MiB{tokens}")
    if "ratio" in row:
        lines.append(f"  ratio {Spread(*row['ratio']).shown()} against {row['against']}, goal {row['target']}")
    if "share" in row:
        lines.append(f"  {row['share']:.0%} of the matrix rate")
    return "\n".join(lines + ([f"  {row['agreement']}"] if row["agreement"] else []))


def keep(row: dict[str, Any]) -> None:
    """Puts a work's figures into docs/performance.json, in place of older ones."""
    rows = json.loads(KEPT.read_text()) if KEPT.exists() else []
    rows = [old for old in rows if old["work"] != row["work"]] + [row]
    order = [work.name for work in WORKS]
    rows = sorted((r for r in rows if r["work"] in order), key=lambda r: order.index(r["work"]))
    KEPT.write_text(json.dumps(rows, indent=1) + "\n")


def write() -> None:
    """Writes table and picture anew."""
    rows = json.loads(KEPT.read_text())
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(f"{before}{START}{table(rows)}{END}{rest.partition(END)[2]}")
    draw(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """The Markdown table of all works, and where it comes from."""
    head = "| work | best peer | times as fast | goal | share of the matrix rate | goal | memory, of the peer's | agreement |"
    lines = [head, "|" + "---|" * 8]
    for row in rows:
        ratio = f"**{Spread(*row['ratio']).shown()}**" if "ratio" in row else ""
        cells = [row["title"], row.get("against", ""), ratio, _number(row["target"]), _share(row.get("share"))]
        left_out = [f"without {name}: {problem}" for name, problem in row.get("left_out", {}).items()]
        cells += [
            _share(row["goal"]),
            _number(row.get("memory")),
            "; ".join(filter(None, [row["agreement"], *left_out])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    made = sorted({f"{row['date']}, commit {row['commit']}, {row['machine']}" for row in rows})
    used = ", ".join(f"{name} {number}" for name, number in rows[-1]["versions"].items())
    return "\n".join([*lines, "", *(f"Measured on {text}." for text in made), f"Versions: {used}.", ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def draw(rows: list[dict[str, Any]]) -> None:
    """Draws the ratios as bars, each beside its goal."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    rows = [row for row in reversed(rows) if "ratio" in row]
    figure, axes = pyplot.subplots(figsize=(8, 0.5 * len(rows) + 1.2))
    medians = [row["ratio"][0] for row in rows]
    reach = [[m - row["ratio"][1] for m, row in zip(medians, rows, strict=True)]]
    reach.append([row["ratio"][2] - m for m, row in zip(medians, rows, strict=True)])
    axes.barh(range(len(rows)), medians, xerr=reach, color="#4477aa", height=0.6)
    for place, row in enumerate(rows):
        if row["target"]:
            axes.plot([row["target"]] * 2, [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
    axes.set_yticks(range(len(rows)), [f"{row['title']}\nagainst {row['against']}" for row in rows], fontsize=8)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times as fast as the best peer; red = the goal")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    with pyplot.rc_context({"svg.fonttype": "none"}):  # letters instead of their outlines: a quarter of the size
        figure.savefig(PICTURE, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
