"""The report: one self-contained HTML page for people who were not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from markupsafe import Markup

from llm_retriever.evaluation import plots, verdict
from llm_retriever.evaluation.examples import Example
from llm_retriever.progress import seconds_as_text


@dataclass(frozen=True)
class Curve:
    """A training curve: what it shows, and ``(update, loss)`` points."""

    title: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class SplitExamples:
    """Example queries of a split: won and lost against the system `against`."""

    against: str
    won: list[Example] = field(default_factory=list)
    lost: list[Example] = field(default_factory=list)


def pages() -> jinja2.Environment:
    """The templates of this package's pages, with the filters and functions that they share."""
    loader = jinja2.PackageLoader("llm_retriever.evaluation", ".")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.undefined = jinja2.StrictUndefined
    page.filters |= {
        "duration": seconds_as_text,
        "short": _short,
        "value": _value,
        "bytes": size_as_text,
        "signed": plots.signed,
        "p_value": verdict.p_value,
    }
    page.globals |= {
        "headline": verdict.headline,
        "evidence": verdict.evidence,
        "label": verdict.label,
        "best": verdict.best,
        "meaning": verdict.meaning,
        "daggers": verdict.daggers,
        "count": verdict.count,
    }
    return page


def render(
    evaluation: Mapping[str, Any],
    manifest: Mapping[str, Any],
    examples: Mapping[str, SplitExamples],
    curves: Sequence[Curve] = (),
) -> str:
    """Renders the page.

    Args:
        evaluation: The content of `evaluation.json`.
        manifest: The content of the collection's `collection.json`.
        examples: By split.
        curves: Training curves, where the retriever brings them.
    """
    template = pages().get_template("report.html.jinja")
    return template.render(
        evaluation=evaluation,
        manifest=manifest,
        primary=evaluation["primary_metric"],
        legend=verdict.LEGEND,
        forest=_forest(evaluation),
        scatters=_scatters(evaluation),
        examples={name: found for name, found in examples.items() if found.won or found.lost},
        curves=[(curve.title, Markup(plot)) for curve in curves if (plot := _curve(curve))],  # noqa: S704
    )


def _forest(evaluation: Mapping[str, Any]) -> Markup | None:
    rows = [
        plots.Difference(
            f"{name}: against {c['baseline']}",
            c["mean_difference"],
            c["interval"] or (c["mean_difference"], c["mean_difference"]),
            c["verdict"] == "significant",
        )
        for name, split in evaluation["splits"].items()
        for c in split["comparisons"]
    ]
    return Markup(plots.forest_plot(rows)) if rows else None  # noqa: S704


def _scatters(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One scatter plot a split, against its first baseline."""
    metric = verdict.label(evaluation["primary_metric"])
    found = []
    for name, split in evaluation["splits"].items():
        for comparison in split["comparisons"][:1]:
            ours, theirs = (split["per_query"][s] for s in (verdict.RETRIEVER, comparison["baseline"]))
            plot = plots.scatter_plot(
                ((theirs[query], ours[query]) for query in ours),
                f"{metric} of {verdict.in_a_sentence(comparison['baseline'])}",
                f"{metric} of the retriever",
            )
            found.append({"split": name, "comparison": comparison, "plot": Markup(plot)})  # noqa: S704
    return found


def _curve(curve: Curve) -> str:
    return plots.curve_plot(curve.points, "update", "loss")


def _short(text: str) -> str:
    """A digest as people quote it."""
    return text[:12]


def _value(value: Any) -> str:
    """A setting as people read it: nested settings as ``rank 32, alpha 64``."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(_value(inner) for inner in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def size_as_text(number: float) -> str:
    """A number of bytes as people write it: ``15.2 MB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
