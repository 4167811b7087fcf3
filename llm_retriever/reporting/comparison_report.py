"""Renders a comparison of variants: one self-contained HTML page, and the same tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from markupsafe import Markup

from llm_retriever.files.markdown import escaped, table
from llm_retriever.metrics.conventions import BM25, hybrid_of, p_value
from llm_retriever.progress import seconds_as_text
from llm_retriever.reporting import charts, tables, verdict
from llm_retriever.reporting.costs_table import hours, large, size_as_text
from llm_retriever.reporting.report import forest, pages, scatters

COSTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "batch_size": ("batch size", lambda v: f"{v:,}"),
    "training_seconds": ("training", seconds_as_text),
    "adaptation_seconds": ("stage one", seconds_as_text),
    "adaptation_examples": ("texts", lambda v: f"{v:,}"),
    "tuning_seconds": ("tuning", seconds_as_text),
    "tuning_examples": ("queries", lambda v: f"{v:,}"),
    "training_process_hours": ("process-hours", hours),
    "index_seconds": ("index", seconds_as_text),
    "index_bytes": ("index size", size_as_text),
    "bytes_per_passage": ("bytes/passage", lambda v: f"{v:,.0f}"),
    "passages_per_second": ("passages/s", lambda v: f"{v:,.0f}"),
    "tokens_per_second": ("tokens/s", lambda v: f"{v:,.0f}"),
    "padding_share": ("padding", lambda v: f"{100 * v:.1f} %"),
    "query_ms": ("ms a query", lambda v: f"{v:.1f}"),
    "peak_memory_bytes": ("memory", size_as_text),
    "parameters": ("weights", large),
    "pretraining_seconds": ("backbone from scratch", seconds_as_text),
}
"""Columns of the table of costs, in order, and how their figures are written; one that no variant has is left out."""
FRONTIERS = (
    ("bytes_per_passage", "bytes per passage", False),
    ("passages_per_second", "passages encoded per second", True),
)
"""Key among the costs of a variant, what the axis says, and whether more of it is better."""


def render(comparison: Mapping[str, Any]) -> str:
    """Renders the page of a `comparison.json`."""
    template = pages().get_template("comparison.html.jinja")
    primary, reference = comparison["primary_metric"], comparison["reference"]
    own, variants = tables.own_splits(comparison), list(comparison["variants"])
    return template.render(
        comparison=comparison,
        primary=primary,
        reference=reference,
        legend=legend(reference),
        headline=headline,
        hybrid_findings=hybrid_findings,
        own=own,
        forests={name: forest({name: split}) for name, split in own.items()},
        matrices={name: matrix(split, variants) for name, split in own.items()},
        scatters=scatters(own, reference, primary, _telling(comparison)),
        zero_shot=tables.zero_shot_table(comparison, primary),
        zero_shot_splits=tables.zero_shot_splits(comparison),
        zero_shot_sentences=verdict.zero_shot(comparison, primary, reference),
        costs=cost_table(comparison),
        frontiers=frontier_panels(comparison),
    )


def legend(reference: str) -> str:
    """Explains the marks of the tables."""
    return (
        f"† and ‡ mark a system that differs from the reference ({reference}) at the 5 % level: † by the paired t-test "
        "(Hommel-corrected over all other systems), ‡ by Fisher's randomisation test. Hybrids, of a retriever and BM25, are "
        "marked where they differ from that of the reference."
    )


def headline(name: str, split: Mapping[str, Any], variants: Iterable[str], metric: str) -> str:
    """States which variant is ahead on a split, in one sentence."""
    values = {variant: split["systems"][variant][metric] for variant in variants}
    highest = max(values.values())
    ahead = [variant for variant, value in values.items() if value == highest]
    what = f"the highest {verdict.label(metric)} of {len(values)} variants: {highest:.3f}"
    return f"On {name}, {verdict.listed(ahead)} {'has' if len(ahead) == 1 else 'have'} {what}."


def hybrid_findings(split: Mapping[str, Any], reference: str) -> list[str]:
    """States the outcome of the reference's hybrid search against all other systems, one sentence a kind of outcome."""
    return verdict.findings(split, hybrid_of(reference), "hybrid_comparisons")


def matrix(split: Mapping[str, Any], variants: list[str]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Builds the table of all pairs: for every column row − column and its corrected p; None on the diagonal."""
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in split["pairs"]:
        for sign, key in ((1, (pair["system"], pair["baseline"])), (-1, (pair["baseline"], pair["system"]))):
            difference = sign * pair["mean_difference"]
            side = "better" if difference > 0 else "worse"
            cells[key] = {
                "difference": difference,
                "p": pair["t_test_hommel"],
                "kind": side if pair["verdict"] == "significant" else "open",
            }
    return [(row, [cells.get((row, column)) for column in variants]) for row in variants]


def _telling(comparison: Mapping[str, Any]) -> list[str]:
    """Picks the systems to show the reference against query by query: the best of the other variants, and BM25."""
    own, metric = tables.own_splits(comparison), comparison["primary_metric"]
    others = [variant for variant in comparison["variants"] if variant != comparison["reference"]]
    best = max(others, key=lambda v: sum(split["systems"][v][metric] for split in own.values()), default="")
    return [best, BM25]


def cost_table(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Builds heads and figures of every variant; the main metric comes first."""
    metric, (split, results) = comparison["primary_metric"], next(iter(comparison["splits"].items()))
    figures = {name: _with_total(costs) for name, costs in comparison["costs"].items()}
    columns = [key for key in COSTS if any(costs.get(key) for costs in figures.values())]
    rows = {
        name: [f"{results['systems'][name][metric]:.3f}", *(_cost(key, costs.get(key)) for key in columns)]
        for name, costs in figures.items()
    }
    return {"heads": [f"{verdict.label(metric)}, {split}", *(COSTS[key][0] for key in columns)], "rows": rows}


def _with_total(costs: Mapping[str, float]) -> dict[str, float]:
    """Adds the training time of both stages together."""
    return {**costs, "training_seconds": costs.get("adaptation_seconds", 0) + costs.get("tuning_seconds", 0)}


def _cost(key: str, value: float | None) -> str:
    return COSTS[key][1](value) if value else tables.NOTHING


def frontier_panels(comparison: Mapping[str, Any]) -> list[Markup]:
    """Plots each cost in which variants differ; quality is the primary metric on the first split."""
    metric, (split, results) = comparison["primary_metric"], next(iter(comparison["splits"].items()))
    drawn = []
    for key, says, more_is_better in FRONTIERS:
        costs_by_name = {name: costs[key] for name, costs in comparison["costs"].items() if costs.get(key)}
        points = [charts.Point(name, cost, results["systems"][name][metric]) for name, cost in costs_by_name.items()]
        if len(set(costs_by_name.values())) > 1:
            drawn.append(charts.frontier_plot(points, says, f"{verdict.label(metric)}, {split}", more_is_better))
    return drawn


def summary_markdown(comparison: Mapping[str, Any]) -> str:
    """Renders headline, table and pairs of every split, and the costs."""
    primary, variants = comparison["primary_metric"], list(comparison["variants"])
    parts = ["# Comparison", "", *_zero_shot(comparison, primary)]
    for name, split in comparison["splits"].items():
        parts += [f"## {escaped(name)}: {verdict.count(split['queries'], 'query', 'queries')}", ""]
        reference = comparison["reference"]
        sentences = [*verdict.findings(split, reference), *hybrid_findings(split, reference)]
        parts += [f"**{escaped(headline(name, split, variants, primary))}** {escaped(' '.join(sentences))}", ""]
        parts += [*verdict.results_table(split, comparison["measures"], primary), ""]
        parts += [f"- {escaped(note)}" for note in split["notes"]] + [""] * bool(split["notes"])
        parts += [f"All pairs: {verdict.label(primary)} of the row minus that of the column (p, Hommel-corrected).", ""]
        parts += [*_pairs(split, variants), ""]
    parts += [escaped(legend(comparison["reference"])), "", "## What it cost", ""]
    costs = cost_table(comparison)
    parts += [*_markdown(["variant", *costs["heads"]], costs["rows"]), ""]
    parts += [f"- {escaped(note)}" for note in comparison["notes"]]
    return "\n".join(parts).rstrip() + "\n"


def _zero_shot(comparison: Mapping[str, Any], primary: str) -> list[str]:
    """Renders sentence and table of the zero-shot collections, where there are any."""
    shown = tables.zero_shot_table(comparison, primary)
    if shown is None:
        return []
    rows = {row["name"]: [cell["text"] + cell["daggers"] for cell in row["cells"]] for row in shown["rows"]}
    sentences = " ".join(verdict.zero_shot(comparison, primary, comparison["reference"]))
    return [
        "## Zero-shot collections",
        "",
        escaped(sentences),
        "",
        *_markdown(["collection", *shown["systems"]], rows),
        "",
    ]


def _pairs(split: Mapping[str, Any], variants: list[str]) -> list[str]:
    def text(cell: dict[str, Any] | None) -> str:
        return "" if cell is None else f"{charts.signed(cell['difference'])} ({p_value(cell['p'])})"

    rows = {row: [text(cell) for cell in cells] for row, cells in matrix(split, variants)}
    return _markdown(["", *variants], rows)


def _markdown(heads: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    return table([*map(escaped, heads)], [[escaped(name), *cells] for name, cells in rows.items()])
