"""What the figures say, in plain words: the sentences on top of the report, and the short Markdown summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_retriever.evaluation.metrics import parse_measures
from llm_retriever.evaluation.plots import signed

RETRIEVER = "retriever"
SPACE = "\N{NO-BREAK SPACE}"
IN_A_SENTENCE = {"retriever": "the retriever", "BM25": "BM25", "backbone": "the un-tuned backbone"}
DAGGERS = (("t_test_hommel", "†"), ("randomisation", "‡"))
LEGEND = (
    "† and ‡ mark a baseline that differs from the retriever at the 5 % level: "
    "† by the paired t-test (Hommel-corrected over the baselines), ‡ by Fisher's randomisation test."
)


def label(metric: str) -> str:
    """A metric as people read it: ``nDCG@10``."""
    return parse_measures(metric)[0].label


def meaning(metric: str) -> str:
    """What a metric tells, in one sentence."""
    (measure,) = parse_measures(metric)
    k = measure.cutoff
    return {
        "mrr": f"1 / rank of the first relevant passage, 0 beyond rank {k}; mean over the queries.",
        "ndcg": f"how high the relevant passages stand among the first {k}, 1 being the ideal order; gain = grade, "
        "discount = log2(rank + 1).",
        "recall": f"share of the relevant passages that are among the first {k}.",
        "map": "mean over the relevant passages of the precision at their ranks.",
    }[measure.kind]


def in_a_sentence(system: str) -> str:
    """A system as it is named within a sentence."""
    return IN_A_SENTENCE.get(system, system)


def daggers(split: Mapping[str, Any], system: str, metric: str) -> str:
    """The significance marks of a baseline's value: ``†``, ``‡``, both or none."""
    found = [c for c in split["comparisons"] if (c["baseline"], c["metric"]) == (system, metric)]
    return "".join(mark for key, mark in DAGGERS for c in found if c[key] < 0.05)


def headline(name: str, split: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """Who is ahead on a split, in one short sentence."""
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


def evidence(split: Mapping[str, Any], comparison: Mapping[str, Any]) -> str:
    """The figures behind a headline."""
    metric, baseline = comparison["metric"], comparison["baseline"]
    ours, theirs = (split["systems"][system][metric] for system in (RETRIEVER, baseline))
    parts = [
        f"{label(metric)} {ours:.3f} against {theirs:.3f} over {count(comparison['queries'], 'query', 'queries')}, "
        f"difference {signed(comparison['mean_difference'])}"
    ]
    if comparison["interval"]:
        low, high = comparison["interval"]
        parts.append(f"95{SPACE}% interval {signed(low)} to {signed(high)}")
    parts.append(f"paired t-test {_p_equals(comparison['t_test_hommel'])} (Hommel-corrected)")
    parts.append(f"randomisation test {_p_equals(comparison['randomisation'])}")
    return "; ".join(parts) + "."


def p_value(p: float) -> str:
    """A p value as people write it: ``0.034``, ``< 0.001``."""
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def _p_equals(p: float) -> str:
    return f"p{SPACE}{p_value(p)}" if p < 0.001 else f"p{SPACE}={SPACE}{p_value(p)}"


def count(number: int, singular: str, plural: str) -> str:
    """A number of things: ``1 query``, ``607 queries``."""
    return f"{number:,} {singular if number == 1 else plural}"


def best(split: Mapping[str, Any], metric: str) -> float:
    """The highest value of a metric among the systems of a split."""
    return max(values[metric] for values in split["systems"].values())


def summary_markdown(evaluation: Mapping[str, Any]) -> str:
    """One sentence a comparison and one table a split."""
    parts = ["# Evaluation", ""]
    for name, split in evaluation["splits"].items():
        parts += [f"## {name}: {count(split['queries'], 'query', 'queries')}", ""]
        for comparison in split["comparisons"]:
            parts += [f"**{headline(name, split, comparison)}** {evidence(split, comparison)}", ""]
        parts += [*_table(split, evaluation["measures"], evaluation["primary_metric"]), ""]
        parts += [f"- {note}" for note in split["notes"]] + [""] * bool(split["notes"])
    if any(split["comparisons"] for split in evaluation["splits"].values()):
        parts += [LEGEND, ""]
    parts += [f"- {note}" for note in evaluation["notes"]]
    return "\n".join(parts).rstrip() + "\n"


def _table(split: Mapping[str, Any], metrics: list[str], primary: str) -> list[str]:
    lines = ["| system | " + " | ".join(label(m) for m in metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for system, values in split["systems"].items():
        cells = []
        for metric in metrics:
            text = f"{values[metric]:.3f}"
            text = f"**{text}**" if values[metric] == best(split, metric) else text
            cells.append(text + (daggers(split, system, metric) if metric == primary else ""))
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    return lines
