"""Describes what was mined, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llm_retriever.files.markdown import escaped, table
from llm_retriever.mining.selection import DENSE, REASONS, SPARSE, TEACHER
from llm_retriever.mining.statistics import SourceStatistics, Statistics

BAR_WIDTH = 40
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
NAMES = {SPARSE: "BM25", DENSE: "dense", TEACHER: "teacher"}
MEANINGS = {
    "positive": "positives of the query",
    "same_text": "the text of a positive or of the query",
    "rank_floor": "above the rank floor",
    "score_ceiling": "above the score ceiling",
    "other_source": "left out by the other source",
}
DROPPED = {
    "no_positives": "because they have no positive",
    "nothing_found": "because no source found anything",
    "nothing_left": "because no candidate was left",
}


def markdown(statistics: Statistics, recipe: Mapping[str, Any]) -> str:
    """Renders what was mined, how, and what to look at.

    Args:
        statistics: Complete.
        recipe: That of the manifest.
    """
    sections = [
        ["# Hard negatives", "", headline(statistics), "", *[f"- {escaped(line)}" for line in method(recipe)], ""],
        _dropped(statistics),
        ["## Where the negatives are from", "", *_origins(statistics)],
        ["## Candidates left out", "", *_left_out(statistics)],
        ["## How soon a positive is found", "", *_positives(statistics)],
        _overlap(statistics),
        ["## Ranks of the negatives", "", *_ranks(statistics)],
        ["## Scores", "", *_scores(statistics)],
        _tuning(recipe["sources"].get(SPARSE, {}).get("tuning")),
    ]
    return "\n".join(line for section in sections for line in section)


def headline(statistics: Statistics) -> str:
    """States the result in a sentence."""
    counts = statistics.counts
    return (
        f"{counts['examples']:,} of {counts['queries']:,} training queries got {counts['negatives']:,} negatives, "
        f"{statistics.wanted:,} wanted for each."
    )


def method(recipe: Mapping[str, Any]) -> list[str]:
    """States how the negatives were chosen, in a few phrases."""
    quotas = ", ".join(f"{number:,} from {NAMES[name]}" for name, number in recipe["quotas"].items())
    return [
        *(_source(name, source) for name, source in recipe["sources"].items()),
        f"drawn with seed {recipe['seed']} from the union, every candidate with the same chance"
        + (f", after quotas: {quotas}" if quotas else ""),
        f"rank floor: {recipe['rank_floor'] or 'off'}; score ceiling: {recipe['score_ceiling'] or 'off'}; "
        f"near duplicates of positives: {'from ' if recipe['near_duplicate'] else ''}{recipe['near_duplicate'] or 'off'}; "
        f"random top-up: {'on' if recipe['random_top_up'] else 'off'}",
    ]


def _source(name: str, source: Mapping[str, Any]) -> str:
    if name == SPARSE:
        tuned = ", tuned" if "tuning" in source else ""
        return f"BM25's top {source['depth']:,} (k1 {source['k1']}, b {source['b']}{tuned}; {source['analyzer']})"
    if name == TEACHER:
        return f"the top {source['depth']:,} of what the source's teacher has scored"
    return f"the top {source['depth']:,} of {source['encoder']} (exact search in {source['dtype']})"


def _dropped(statistics: Statistics) -> list[str]:
    counts = statistics.counts
    return [
        *[f"- {counts['dropped'][reason]:,} queries dropped {why}" for reason, why in DROPPED.items()],
        f"- {counts['fewer_negatives_than_wanted']:,} queries with fewer than {statistics.wanted:,} negatives",
        f"- {counts['near_duplicates']:,} passages drawn and put back: near duplicates of a positive",
        "",
    ]


def _origins(statistics: Statistics) -> list[str]:
    """Tabulates negatives by the source that ranks them best, and how many may be unlabelled positives."""
    counts = statistics.counts
    rows = [
        [
            NAMES[name],
            f"{c['negatives']:,}",
            *(share(c[key], c["negatives"]) for key in ("above_positive", "positive_not_retrieved")),
        ]
        for name, c in counts["sources"].items()
    ]
    lines = table(["source", "negatives", "above their positive", "of queries whose positive was not retrieved"], rows)
    lines.append("")
    if len(statistics.sources) > 1:
        lines.append(f"{counts['found_by_several']:,} of them were found by both sources; the better rank counts.")
    if counts["random"]:
        lines.append(f"{counts['random']:,} more are random passages.")
    return [*lines, "A negative that scores above its positive may be a positive that nobody labelled.", ""]


def _left_out(statistics: Statistics) -> list[str]:
    sources = statistics.counts["sources"]
    reasons = REASONS if len(sources) > 1 else REASONS[:-1]
    rows = [[MEANINGS[reason], *(f"{c['removed'][reason]:,}" for c in sources.values())] for reason in reasons]
    rows.append(["candidates in all", *(f"{c['candidates']:,}" for c in sources.values())])
    return [*table(["", *(NAMES[name] for name in sources)], rows), ""]


def _positives(statistics: Statistics) -> list[str]:
    rows = [
        [NAMES[name], *(f"{value:.1%}" for value in source.retrieved_within(statistics.borders))]
        for name, source in statistics.sources.items()
    ]
    return [*table(["within the top", *(f"{border:,}" for border in statistics.borders)], rows), ""]


def _overlap(statistics: Statistics) -> list[str]:
    shares = statistics.overlap()
    if not shares:
        return []
    row = ["share in common", *(f"{value:.1%}" for value in shares)]
    heads = ["within the top", *(f"{border:,}" for border in statistics.borders)]
    return ["## What both sources find", "", *table(heads, [row]), ""]


def rank_bounds(depth: int, bars: int = 10) -> list[int]:
    """Bounds of equal rank ranges: bar i covers the ranks (bounds[i], bounds[i + 1]]."""
    return sorted({round(i * depth / bars) for i in range(bars + 1)})


def _ranks(statistics: Statistics) -> list[str]:
    """Draws a bar for every tenth of the depth: what was left out at the top shows as a dent."""
    bounds, lines = rank_bounds(statistics.depth), []
    for name, source in statistics.sources.items():
        numbers = source.negatives_by_rank(bounds)
        longest = max(*numbers, 1)
        lines += [f"{NAMES[name]}:", "", "```"]
        for low, high, number in zip(bounds, bounds[1:], numbers, strict=False):
            lines.append(f"{f'{low + 1:,}–{high:,}':>13} {'█' * round(BAR_WIDTH * number / longest)} {number:,}")
        lines += ["```", ""]
    return lines


def _scores(statistics: Statistics) -> list[str]:
    rows = [row for name, source in statistics.sources.items() for row in _quantiles(NAMES[name], source)]
    return [*table(["", "lowest", "25 %", "median", "75 %", "highest"], rows), ""]


def _quantiles(name: str, source: SourceStatistics) -> list[list[str]]:
    kinds = ("best positive, where retrieved", "negatives")
    return [
        [f"{name}: {kind}", *(f"{value:.2f}" for value in np.quantile(scores, QUANTILES))]
        for kind, scores in zip(kinds, source.score_arrays(), strict=True)
        if len(scores)
    ]


def _tuning(tuning: Mapping[str, Any] | None) -> list[str]:
    """Tabulates the grid, with the best cell in bold."""
    if tuning is None:
        return []
    metric, best = tuning["metric"], tuning["best"]
    values = {(cell["k1"], cell["b"]): cell[metric] for cell in tuning["grid"]}
    columns = sorted({b for _, b in values})
    rows = [
        [f"{k1:g}", *(_cell(values[k1, b], (k1, b) == (best["k1"], best["b"])) for b in columns)]
        for k1 in sorted({k1 for k1, _ in values})
    ]
    return [
        "## BM25's parameters",
        "",
        f"{metric} on {tuning['queries']:,} queries of {tuning['split']}; a row for each k1, a column for each b.",
        *([] if tuning["split"] == "train" else ["BM25's own figures on that split are too good to be compared with."]),
        "",
        *table(["k1", *(f"b {b:g}" for b in columns)], rows),
        "",
    ]


def _cell(value: float, is_best: bool) -> str:
    return f"**{value:.4f}**" if is_best else f"{value:.4f}"


def share(number: int, of: int) -> str:
    """Formats a number and its share of another: ``12 (4.0%)``."""
    return f"{number:,} ({number / max(of, 1):.1%})"
