"""What a comparison of variants says: one self-contained HTML page, and the same tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup

from llm_retriever.evaluation import plots, verdict
from llm_retriever.evaluation.report import pages, size_as_text
from llm_retriever.evaluation.variants import UNTUNED
from llm_retriever.progress import seconds_as_text

NOTHING = "–"
COSTS = {
    "pretraining_seconds": "backbone from scratch",
    "adaptation_seconds": "stage one",
    "adaptation_examples": "texts",
    "tuning_seconds": "tuning",
    "tuning_examples": "queries",
    "index_seconds": "index",
    "passages_per_second": "passages/s",
    "index_bytes": "index size",
    "query_ms": "ms a query",
}
"""Columns of the table of costs, in order; one that no variant has a figure for is left out."""


def render(comparison: Mapping[str, Any]) -> str:
    """The page of a `comparison.json`."""
    template = pages().get_template("comparison.html.jinja")
    return template.render(
        comparison=comparison,
        primary=comparison["primary_metric"],
        reference=comparison["reference"],
        legend=legend(comparison["reference"]),
        headline=headline,
        findings=findings,
        forests={name: _forest(split) for name, split in comparison["splits"].items()},
        matrices={name: matrix(split, list(comparison["variants"])) for name, split in comparison["splits"].items()},
        costs=cost_table(comparison),
    )


def legend(reference: str) -> str:
    """What the marks of the tables mean."""
    return (
        f"† and ‡ mark a system that differs from the reference ({reference}) at the 5 % level: † by the paired t-test "
        "(Hommel-corrected over all other systems), ‡ by Fisher's randomisation test."
    )


def headline(name: str, split: Mapping[str, Any], variants: Iterable[str], metric: str) -> str:
    """Which variant is ahead on a split, in one sentence."""
    values = {variant: split["systems"][variant][metric] for variant in variants}
    highest = max(values.values())
    ahead = [variant for variant, value in values.items() if value == highest]
    what = f"the highest {verdict.label(metric)} of {len(values)} variants: {highest:.3f}"
    return f"On {name}, {_listed(ahead)} {'has' if len(ahead) == 1 else 'have'} {what}."


def findings(split: Mapping[str, Any], reference: str) -> list[str]:
    """How the reference does against all other systems of a split, one sentence a kind of outcome."""
    groups: dict[str, list[str]] = {}
    for c in split["comparisons"]:
        other = c["baseline"]
        groups.setdefault(_outcome(c), []).append(f"the {other}" if other.startswith(UNTUNED) else other)
    told = {
        "better": f"{reference} is significantly better than",
        "worse": f"{reference} is significantly worse than",
        "disagree": f"Only one of two tests tells {reference} from",
        "open": f"There is no significant difference between {reference} and",
    }
    joint = {"disagree": "or", "open": "or"}
    return [f"{text} {_listed(groups[kind], joint.get(kind, 'and'))}." for kind, text in told.items() if kind in groups]


def _outcome(c: Mapping[str, Any]) -> str:
    if c["verdict"] == "significant":
        return "better" if c["mean_difference"] > 0 else "worse"
    return "disagree" if c["verdict"] == "tests disagree" else "open"


def _listed(names: list[str], joint: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {joint} {names[-1]}"


def _forest(split: Mapping[str, Any]) -> Markup:
    rows = [
        plots.Difference(
            f"against {c['baseline']}",
            c["mean_difference"],
            c["interval"] or (c["mean_difference"], c["mean_difference"]),
            c["verdict"] == "significant",
        )
        for c in split["comparisons"]
    ]
    return Markup(plots.forest_plot(rows))  # noqa: S704


def matrix(split: Mapping[str, Any], variants: list[str]) -> list[tuple[str, list[dict[str, Any] | None]]]:
    """Rows of the table of all pairs: for every column row − column and its corrected p; None on the diagonal."""
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


def cost_table(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of the columns, and the figures of every variant as people read them."""
    told = comparison["costs"]
    columns = [key for key in COSTS if any(costs.get(key) for costs in told.values())]
    return {
        "heads": [COSTS[key] for key in columns],
        "rows": {name: [_cost(key, costs.get(key)) for key in columns] for name, costs in told.items()},
    }


def _cost(key: str, value: float | None) -> str:
    if not value:
        return NOTHING
    if key.endswith("_seconds"):
        return seconds_as_text(value)
    if key == "index_bytes":
        return size_as_text(value)
    return f"{value:.1f}" if key == "query_ms" else f"{value:,.0f}"


def summary_markdown(comparison: Mapping[str, Any]) -> str:
    """Headline, table and pairs of every split, and the costs."""
    primary, variants = comparison["primary_metric"], list(comparison["variants"])
    parts = ["# Comparison", ""]
    for name, split in comparison["splits"].items():
        parts += [f"## {name}: {verdict.count(split['queries'], 'query', 'queries')}", ""]
        told = findings(split, comparison["reference"])
        parts += [f"**{headline(name, split, variants, primary)}** {' '.join(told)}", ""]
        parts += [*_results(split, comparison["measures"], primary), ""]
        parts += [f"- {note}" for note in split["notes"]] + [""] * bool(split["notes"])
        parts += [f"All pairs: {verdict.label(primary)} of the row minus that of the column (p, Hommel-corrected).", ""]
        parts += [*_pairs(split, variants), ""]
    parts += [legend(comparison["reference"]), "", "## What it cost", ""]
    table = cost_table(comparison)
    parts += [*_markdown(["variant", *table["heads"]], table["rows"]), ""]
    parts += [f"- {note}" for note in comparison["notes"]]
    return "\n".join(parts).rstrip() + "\n"


def _results(split: Mapping[str, Any], metrics: list[str], primary: str) -> list[str]:
    def cell(system: str, metric: str, value: float) -> str:
        text = f"**{value:.3f}**" if value == verdict.best(split, metric) else f"{value:.3f}"
        return text + (verdict.daggers(split, system, metric) if metric == primary else "")

    rows = {
        system: [cell(system, metric, values[metric]) for metric in metrics]
        for system, values in split["systems"].items()
    }
    return _markdown(["system", *map(verdict.label, metrics)], rows)


def _pairs(split: Mapping[str, Any], variants: list[str]) -> list[str]:
    def text(cell: dict[str, Any] | None) -> str:
        return "" if cell is None else f"{plots.signed(cell['difference'])} ({verdict.p_value(cell['p'])})"

    rows = {row: [text(cell) for cell in cells] for row, cells in matrix(split, variants)}
    return _markdown(["", *variants], rows)


def _markdown(heads: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), "|---" * len(heads) + "|", *(line([name, *cells]) for name, cells in rows.items())]
