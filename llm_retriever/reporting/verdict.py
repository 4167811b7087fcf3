"""States the figures in plain words: the sentences on top of the report, and the short Markdown summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_retriever.files.markdown import escaped, table
from llm_retriever.metrics.conventions import (
    BACKBONE,
    HYBRID,
    PRODUCTION,
    PRODUCTION_HYBRID,
    RETRIEVER,
    SPACE,
    hybrid_of,
    p_equals,
)
from llm_retriever.metrics.measures import parse_measures
from llm_retriever.reporting.charts import signed

UNTUNED = "un-tuned backbone"
IN_A_SENTENCE = {
    RETRIEVER: "the retriever",
    HYBRID: "hybrid search",
    PRODUCTION: "the version in production",
    PRODUCTION_HYBRID: "the hybrid search in production",
    BACKBONE: f"the {UNTUNED}",
}
DAGGERS = (("t_test_hommel", "†"), ("randomisation", "‡"))
LEGEND = (
    "† and ‡ mark a baseline that differs from the retriever at the 5 % level: "
    "† by the paired t-test (Hommel-corrected over the baselines), ‡ by Fisher's randomisation test."
)
HYBRID_LEGEND = "Those of hybrid search tell it from the retriever alone, corrected over its own comparisons."


def legend(evaluation: Mapping[str, Any]) -> str:
    """Explains the marks of the tables."""
    return f"{LEGEND} {HYBRID_LEGEND}" if HYBRID in evaluation else LEGEND


def label(metric: str) -> str:
    """Label of a metric for people: ``nDCG@10``."""
    return parse_measures(metric)[0].label


def meaning(metric: str) -> str:
    """Explains a metric in one sentence."""
    return parse_measures(metric)[0].meaning


def in_a_sentence(system: str) -> str:
    """Name of a system within a sentence."""
    return f"the {system}" if system.startswith(UNTUNED) else IN_A_SENTENCE.get(system, system)


def daggers(split: Mapping[str, Any], system: str, metric: str) -> str:
    """Significance marks of a system's value: ``†``, ``‡``, both or none.

    They tell a baseline from the retriever, hybrid search from the retriever, and a variant's hybrid from the reference's.
    """
    compared, against = split["comparisons"], RETRIEVER if system == HYBRID else system
    if system == HYBRID or system.startswith(hybrid_of("")):
        compared = split.get("hybrid_comparisons", [])
    rows = [c for c in compared if (c["baseline"], c["metric"]) == (against, metric)]
    return "".join(mark for key, mark in DAGGERS for c in rows if c[key] < 0.05)


def headline(name: str, split: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """States who is ahead on a split, in one short sentence."""
    retriever, baseline = in_a_sentence(RETRIEVER), in_a_sentence(comparison["baseline"])
    difference = comparison["mean_difference"]
    ahead, behind = (retriever, baseline) if difference > 0 else (baseline, retriever)
    where = f"On {name}, "
    if difference == 0:
        return f"{where}{retriever} and {baseline} score the same."
    if comparison["verdict"] == "significant":
        return f"{where}{ahead} is significantly better than {behind}."
    if comparison["verdict"] == "tests disagree":
        return f"{where}{ahead} is ahead of {behind}, but only one of two tests finds the difference significant."
    if comparison["queries"] == 1:
        return f"{where}{ahead} is ahead of {behind}, but a single query proves nothing."
    return f"{where}there is no significant difference between {retriever} and {baseline}."


def against_production(split: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Picks the comparison with the version in production; None where there is none."""
    return next((c for c in split["comparisons"] if c["baseline"] == PRODUCTION), None)


def overview(name: str, split: Mapping[str, Any], metric: str) -> str:
    """States which of many systems is ahead on a split, and where the retriever stands, in one sentence."""
    values = {system: means[metric] for system, means in split["systems"].items()}
    highest, ours = max(values.values()), values[RETRIEVER]
    if ours == highest:
        return f"On {name}, the retriever has the highest {label(metric)} of {len(values)} systems: {ours:.3f}."
    ahead = listed([in_a_sentence(system) for system, value in values.items() if value == highest])
    return (
        f"On {name}, {ahead} has the highest {label(metric)} of {len(values)} systems: {highest:.3f}; the retriever has "
        f"{ours:.3f}."
    )


def findings(split: Mapping[str, Any], reference: str, compared: str = "comparisons") -> list[str]:
    """States the outcome of the reference against all other systems of a split, one sentence a kind of outcome.

    Args:
        split: Its results.
        reference: A system.
        compared: The list of its comparisons; where the split has none, there are no sentences.
    """
    groups: dict[str, list[str]] = {}
    for comparison in split.get(compared, []):
        groups.setdefault(_outcome(comparison), []).append(in_a_sentence(comparison["baseline"]))
    texts = {
        "better": ("{reference} is significantly better than {others}.", "and"),
        "worse": ("{reference} is significantly worse than {others}.", "and"),
        "disagree": ("Only one of two tests tells {reference} from {others}.", "or"),
        "open": ("There is no significant difference between {reference} and {others}.", "or"),
    }
    sentences = [
        text.format(reference=in_a_sentence(reference), others=listed(groups[kind], joint))
        for kind, (text, joint) in texts.items()
        if kind in groups
    ]
    # A variant's name is written as it is, at the start of a sentence too.
    known = IN_A_SENTENCE.values()
    return [f"{s[0].upper()}{s[1:]}" if s.startswith(("the ", *known)) else s for s in sentences]


def _outcome(comparison: Mapping[str, Any]) -> str:
    if comparison["verdict"] == "significant":
        return "better" if comparison["mean_difference"] > 0 else "worse"
    return "disagree" if comparison["verdict"] == "tests disagree" else "open"


def listed(names: list[str], joint: str = "and") -> str:
    """Joins names in a sentence: ``BM25, Echo and Summarize``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {joint} {names[-1]}"


def zero_shot(content: Mapping[str, Any], metric: str, reference: str = RETRIEVER) -> list[str]:
    """States the mean over the zero-shot collections, and how often the difference is significant."""
    collections = content.get("zero_shot")
    if not collections or reference not in collections["mean"]:
        return []
    number = count(len(collections["collections"]), "zero-shot collection", "zero-shot collections")
    others = [f"{in_a_sentence(s)} {v[metric]:.3f}" for s, v in collections["mean"].items() if s != reference]
    mean = f"{label(metric)} of {in_a_sentence(reference)} on {number}: {collections['mean'][reference][metric]:.3f} on average"
    splits = [split for split in content["splits"].values() if "zero_shot" in split]
    hybrid = _counted(splits, HYBRID, "hybrid_comparisons") if reference == RETRIEVER else []
    return [f"{mean}; {listed(others)}." if others else f"{mean}.", *_counted(splits, reference), *hybrid]


def _counted(splits: list[Mapping[str, Any]], reference: str, compared: str = "comparisons") -> list[str]:
    outcomes: dict[str, list[str]] = {}
    for split in splits:
        for comparison in split.get(compared, []):
            outcomes.setdefault(comparison["baseline"], []).append(_outcome(comparison))
    return [
        f"Against {in_a_sentence(baseline)}, {in_a_sentence(reference)} is significantly better on {kinds.count('better')} "
        f"and worse on {kinds.count('worse')} of {count(len(kinds), 'query set', 'query sets')}."
        for baseline, kinds in outcomes.items()
    ]


def evidence(split: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """States the figures behind a headline."""
    metric, baseline = comparison["metric"], comparison["baseline"]
    ours, theirs = (split["systems"][system][metric] for system in (RETRIEVER, baseline))
    parts = [
        f"{label(metric)} {ours:.3f} against {theirs:.3f} over {count(comparison['queries'], 'query', 'queries')}, "
        f"difference {signed(comparison['mean_difference'])}"
    ]
    if comparison["interval"]:
        low, high = comparison["interval"]
        parts.append(f"95{SPACE}% interval {signed(low)} to {signed(high)}")
    parts.append(f"paired t-test {p_equals(comparison['t_test_hommel'])} (Hommel-corrected)")
    parts.append(f"randomisation test {p_equals(comparison['randomisation'])}")
    return "; ".join(parts) + "."


def count(number: int, singular: str, plural: str) -> str:
    """Formats a number of things: ``1 query``, ``607 queries``."""
    return f"{number:,} {singular if number == 1 else plural}"


def best(split: Mapping[str, Any], metric: str) -> float:
    """Highest value of a metric among the systems of a split."""
    return max(values[metric] for values in split["systems"].values())


def summary_markdown(evaluation: Mapping[str, Any]) -> str:
    """Renders one sentence a comparison and one table a split."""
    parts = ["# Evaluation", ""]
    parts += (
        [escaped(" ".join(zero_shot(evaluation, evaluation["primary_metric"]))), ""]
        if "zero_shot" in evaluation
        else []
    )
    for name, split in evaluation["splits"].items():
        parts += [f"## {escaped(name)}: {count(split['queries'], 'query', 'queries')}", ""]
        for comparison in split["comparisons"]:
            parts += [f"**{escaped(headline(name, split, comparison))}** {escaped(evidence(split, comparison))}", ""]
        if sentences := findings(split, HYBRID, "hybrid_comparisons"):
            parts += [escaped(" ".join(sentences)), ""]
        parts += [*results_table(split, evaluation["measures"], evaluation["primary_metric"]), ""]
        parts += [f"- {escaped(note)}" for note in split["notes"]] + [""] * bool(split["notes"])
    if any(split["comparisons"] for split in evaluation["splits"].values()):
        parts += [legend(evaluation), ""]
    parts += [f"- {escaped(note)}" for note in evaluation["notes"]]
    return "\n".join(parts).rstrip() + "\n"


def results_table(split: Mapping[str, Any], metrics: list[str], primary: str) -> list[str]:
    """Every system of a split by every metric, in Markdown; the best value of a column is bold."""
    rows = []
    for system, values in split["systems"].items():
        cells = []
        for metric in metrics:
            text = f"{values[metric]:.3f}"
            text = f"**{text}**" if values[metric] == best(split, metric) else text
            cells.append(text + (daggers(split, system, metric) if metric == primary else ""))
        rows.append([escaped(system), *cells])
    return table(["system", *map(label, metrics)], rows)
