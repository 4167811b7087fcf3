"""Renders the report: one self-contained HTML page for people who were not there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup

from llm_retriever.data.collection_report import what_was_changed
from llm_retriever.metrics.conventions import HYBRID, RETRIEVER, SPACE, p_value
from llm_retriever.progress import seconds_as_text
from llm_retriever.reporting import charts, heat_map, tables, verdict
from llm_retriever.reporting.costs_table import efficiency_rows, size_as_text
from llm_retriever.reporting.examples import Example

SCATTERS = 3
"""Baselines of a split that are shown query by query."""
FEW = 3
"""Comparisons of a split that get a sentence each on top of the page; of more, one sentence a kind of outcome."""


@dataclass(frozen=True)
class SplitExamples:
    """Example queries of a split: won and lost against the system `against`."""

    against: str
    won: list[Example] = field(default_factory=list)
    lost: list[Example] = field(default_factory=list)


def pages() -> jinja2.Environment:
    """Loads the templates of this package's pages, with the filters and functions that they share."""
    loader = jinja2.PackageLoader("llm_retriever.reporting", ".")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.undefined = jinja2.StrictUndefined
    page.filters |= {
        "duration": seconds_as_text,
        "short": _short,
        "value": _value,
        "bytes": size_as_text,
        "signed": charts.signed,
        "percent": percent,
        "p_value": p_value,
    }
    page.globals |= {
        "headline": verdict.headline,
        "against_production": verdict.against_production,
        "overview": verdict.overview,
        "findings": verdict.findings,
        "in_a_sentence": verdict.in_a_sentence,
        "evidence": verdict.evidence,
        "label": verdict.label,
        "best": verdict.best,
        "meaning": verdict.meaning,
        "daggers": verdict.daggers,
        "count": verdict.count,
        "what_was_changed": what_was_changed,
    }
    return page


def render(evaluation: Mapping[str, Any], manifest: Mapping[str, Any], examples: Mapping[str, SplitExamples]) -> str:
    """Renders the page; every number in it stands in `evaluation.json` or `collection.json`.

    Args:
        evaluation: The content of `evaluation.json`.
        manifest: The content of the collection's `collection.json`.
        examples: By split.
    """
    primary = evaluation["primary_metric"]
    own = tables.own_splits(evaluation)
    shown = {name: some for name, some in examples.items() if some.won or some.lost}
    return (
        pages()
        .get_template("report.html.jinja")
        .render(
            evaluation=evaluation,
            manifest=manifest,
            primary=primary,
            few=FEW,
            own=own,
            compared={name: split for name, split in own.items() if split["comparisons"]},
            zero_shot=tables.zero_shot_table(evaluation, primary),
            zero_shot_splits=tables.zero_shot_splits(evaluation),
            zero_shot_sentences=verdict.zero_shot(evaluation, primary),
            legend=verdict.legend(evaluation),
            fused={name: split for name, split in own.items() if "hybrid_comparisons" in split},
            hybrid_curve=_hybrid_curve(evaluation),
            forest=forest(own),
            scatters=scatters(own, RETRIEVER, primary),
            examples={name: some for name, some in shown.items() if name in own},
            zero_shot_examples={name: some for name, some in shown.items() if name not in own},
            costs=efficiency_rows(evaluation),
            curves=_curves(evaluation),
            attention=attention(evaluation),
        )
    )


def forest(splits: Mapping[str, Any]) -> Markup | None:
    """The reference against all other systems; None where nothing is compared."""
    rows = [
        charts.Difference(
            f"{name}: against {c['baseline']}" if len(splits) > 1 else f"against {c['baseline']}",
            c["mean_difference"],
            c["interval"] or (c["mean_difference"], c["mean_difference"]),
            c["verdict"] == "significant",
        )
        for name, split in splits.items()
        for c in split["comparisons"]
    ]
    return charts.forest_plot(rows) if rows else None


def scatters(
    splits: Mapping[str, Any], reference: str, primary: str, others: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Plots the reference against other systems of every split, query by query; None = the first three."""
    plotted = []
    for name, split in splits.items():
        shown = [c for c in split["comparisons"] if others is None or c["baseline"] in others]
        for comparison in shown[: SCATTERS if others is None else None]:
            ours, theirs = (split["per_query"][system] for system in (reference, comparison["baseline"]))
            plot = charts.scatter_plot(
                ((theirs[query], ours[query]) for query in ours),
                f"{verdict.label(primary)} of {verdict.in_a_sentence(comparison['baseline'])}",
                f"{verdict.label(primary)} of {verdict.in_a_sentence(reference)}",
            )
            plotted.append({"split": name, "comparison": comparison, "plot": plot})
    return plotted


def _curves(evaluation: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    drawn = [(c["title"], charts.curve_plot(c["points"], "update", "loss")) for c in evaluation.get("curves", ())]
    return [(title, plot) for title, plot in drawn if plot]


def _hybrid_curve(evaluation: Mapping[str, Any]) -> Markup | None:
    """Plots the metric by the retriever's weight, on the split that chose; None where nothing was chosen."""
    hybrid = evaluation.get(HYBRID, {})
    points = hybrid.get("curve", [])
    if len(points) < 2:
        return None
    what = f"{verdict.label(hybrid['metric'])} on {hybrid['chosen_on']}"
    return charts.curve_plot(points, "weight of the retriever", what)


def attention(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Plots the attention analysis, one map a model, on a common scale."""
    analysis = evaluation.get("attention")
    if not analysis:
        return []
    largest = heat_map.largest_attention(analysis)
    return [
        {
            "model": name,
            "share": model["embedding_share"],
            "plot": heat_map.heat_map(
                analysis["columns"], model["layers"], largest, f"Attention of the {name} by layer"
            ),
        }
        for name, model in analysis["models"].items()
    ]


def _short(text: str) -> str:
    """Shortens a digest as people quote it."""
    return text[:12]


def _value(value: Any) -> str:
    """Formats a setting: nested settings as ``rank 32, alpha 64``."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items() if inner is not None)
    if isinstance(value, (list, tuple)):
        return " ".join(_value(inner) for inner in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def percent(share: float | None) -> str:
    """Formats a relative difference: ``+4.1 %``; a dash where there is none."""
    return tables.NOTHING if share is None else f"{charts.signed(100 * share, 1)}{SPACE}%"
