"""The step `compare`: sets the evaluations of several variants side by side, and tests which differ by more than chance.

A variant is one way through the pipeline (a method, a recipe, a size of the backbone); its figures are those of the system
`retriever` in its own `evaluation.json`. Families of paired t-tests are corrected by Hommel's procedure, each for one metric on
one split: all other systems but the variants' hybrid searches against the reference, all pairs of variants, and all others,
those among them, against the hybrid search of the reference.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.evaluation.variants import (
    BACKBONE,
    BM25,
    RETRIEVER,
    SHARED,
    UNTUNED,
    ZERO_SHOT,
    Variant,
    check_alike,
    chosen_reference,
    open_evaluations,
)
from llm_retriever.files import layouts
from llm_retriever.files.names import slug
from llm_retriever.metrics.conventions import ALPHA, HYBRID, hybrid_of
from llm_retriever.metrics.measures import mean_of_systems, parse_measures
from llm_retriever.metrics.significance import DRAWS, ON_TIES, compare, hommel
from llm_retriever.reporting import comparison_report
from llm_retriever.settings import CompareSettings

COMPARISON_FILE = "comparison.json"
FORMAT = 1
FAMILIES = {
    "comparisons": "all other systems × the primary metric × one split",
    "pairs": "all pairs of variants × the primary metric × one split",
    "hybrid_comparisons": "the reference's hybrid search against all other systems × the primary metric × one split",
}
FACTS = ("collection", "zero_shot", "queries", "judgments", "relevance_level")
COSTS = ("index_seconds", "index_bytes", "passages_per_second")
EFFICIENCY = (
    "bytes_per_passage",
    "training_process_hours",
    "batch_size",
    "tokens_per_second",
    "padding_share",
    "peak_memory_bytes",
    "parameters",
)
NO_UNTUNED = re.compile(r"(^|: )The un-tuned backbone was not evaluated: ")
UNWANTED = re.compile(NO_UNTUNED.pattern + r".* the limit of 0\b")
"""The notes of an evaluation without the un-tuned backbone, and of one whose settings leave it out."""
NOT_STAGE_ONE = ("pretraining", "contrastive")


def compare_evaluations(
    settings: CompareSettings, evaluations: Mapping[str, Path], *, comparison: Path, report: Path, summary: Path
) -> dict[str, float]:
    """Compares evaluations of the same queries.

    Args:
        settings: The reference, and names and descriptions of the variants.
        evaluations: Outputs of `evaluate`, by the variant's name or its slug.
        comparison: Directory to write: `comparison.json`.
        report: HTML file to write.
        summary: Markdown file to write.

    Returns:
        Flat finite numbers: ``test_ndcg_at_10_llm_ql`` of a variant, ``test_ndcg_at_10_bm25`` of a baseline.

    Raises:
        InputError: The evaluations are not of the same queries, or a name is unknown; nothing is written.
    """
    variants = open_evaluations(evaluations, settings.variants)
    check_alike(variants)
    content = results(variants, chosen_reference(variants, settings.reference))
    with layouts.COMPARISON.output(comparison) as draft:
        files.write_json(draft / COMPARISON_FILE, content)
        files.write_text(report, comparison_report.render(content))
        files.write_text(summary, comparison_report.summary_markdown(content))
    return flat_metrics(content)


def results(variants: list[Variant], reference: str) -> dict[str, Any]:
    """Builds the content of `comparison.json`: systems × measures and tests by split, costs by variant."""
    first = variants[0].content
    splits = {split: _split(variants, reference, split) for split in first["splits"]}
    return {
        "format": FORMAT,
        **{key: first[key] for key in SHARED},
        "corpus": first.get("corpus", ""),
        "reference": reference,
        "significance": {"level": ALPHA, "correction": "Hommel", "families": FAMILIES, "draws": DRAWS},
        "untuned": {name: variant.name for name, variant in _untuned(variants).items()},
        "variants": {variant.name: _facts(variant) for variant in variants},
        "splits": splits,
        **_zero_shot(first, splits),
        "costs": {variant.name: costs(variant.content) for variant in variants},
        "versions": first.get("versions", {}),
        "notes": _notes(variants),
    }


def _zero_shot(first: Mapping[str, Any], splits: Mapping[str, Any]) -> dict[str, Any]:
    """Means of the zero-shot collections, and the mean over them; {} where there are none."""
    collections = {
        name: mean_of_systems([splits[split]["systems"] for split in collection["splits"]])
        for name, collection in first.get(ZERO_SHOT, {}).get("collections", {}).items()
    }
    if not collections:
        return {}
    return {ZERO_SHOT: {"collections": collections, "mean": mean_of_systems(list(collections.values()))}}


def _facts(variant: Variant) -> dict[str, Any]:
    content = variant.content
    lineage = content["lineage"]
    return {
        "description": variant.description,
        "method": content["method"],
        "recipe": content["recipe"],
        "card": content.get("card", ""),
        "backbone": _backbone(lineage),
        "stages": [stage["stage"] for stage in lineage["stages"]],
    }


def _backbone(lineage: Mapping[str, Any]) -> str:
    """Names the backbone by its source, with its layers where some were dropped."""
    kept = lineage.get("layers")
    return f"{lineage['source']}, {kept[0]} of {kept[1]} layers" if kept else str(lineage["source"])


def _notes(variants: list[Variant]) -> list[str]:
    """Notes on the evaluations.

    The un-tuned backbone needs no excuse where another variant has it, or where it was not wanted.
    """
    excused = NO_UNTUNED if _untuned(variants) else UNWANTED
    return [n for n in _told_by({v.name: v.content.get("notes", []) for v in variants}) if not excused.search(n)]


def _told_by(notes: Mapping[str, Iterable[str]]) -> list[str]:
    """Merges notes by variant into one list: each once, behind the names of the variants that have it unless all do."""
    names_by_text: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in dict.fromkeys(texts):
            names_by_text.setdefault(text, []).append(name)
    return [t if len(names) == len(notes) else f"{', '.join(names)}: {t}" for t, names in names_by_text.items()]


def _split_notes(variants: list[Variant], split: str) -> list[str]:
    """Notes of the evaluations on a split, but for those on the tests of a single one, which are others here."""
    notes = {variant.name: variant.content["splits"][split]["notes"] for variant in variants}
    return _told_by({name: [n for n in texts if not n.endswith(ON_TIES)] for name, texts in notes.items()})


def _untuned(variants: list[Variant]) -> dict[str, Variant]:
    """Variants whose evaluation has the un-tuned backbone too, by the name that it gets in the tables."""
    having = [v for v in variants if any(BACKBONE in split["systems"] for split in v.content["splits"].values())]
    return {UNTUNED if len(having) == 1 else f"{UNTUNED} of {v.name}": v for v in having}


def _systems(variants: list[Variant], split: str) -> dict[str, tuple[Variant, str]]:
    """Every system of a split and where it stands: variants, hybrids, BM25, un-tuned backbones, other baselines."""
    systems = {variant.name: (variant, RETRIEVER) for variant in variants}
    systems |= {hybrid_of(v.name): (v, HYBRID) for v in variants if v.per_query(split, HYBRID) is not None}
    lexical = next((v for v in variants if v.per_query(split, BM25) is not None), None)
    if lexical is not None:
        systems[BM25] = (lexical, BM25)
    systems |= {name: (v, BACKBONE) for name, v in _untuned(variants).items() if v.per_query(split, BACKBONE)}
    return systems | _others(variants, split, set(systems))


def _others(variants: list[Variant], split: str, taken: set[str]) -> dict[str, tuple[Variant, str]]:
    """Further baselines: once where all variants that have one have the same, else one for each of these variants."""
    names = (name for v in variants for name in v.content["splits"][split]["per_query"])
    others: dict[str, tuple[Variant, str]] = {}
    for name in dict.fromkeys(names):
        having = [v for v in variants if name not in (RETRIEVER, HYBRID, BM25, BACKBONE) and v.per_query(split, name)]
        if having and all(v.per_query(split, name) == having[0].per_query(split, name) for v in having):
            others[f"{name} (baseline)" if name in taken else name] = (having[0], name)
        else:
            others |= {f"{name} of {v.name}": (v, name) for v in having}
    return others


def _split(variants: list[Variant], reference: str, split: str) -> dict[str, Any]:
    metric, first = variants[0].content["primary_metric"], variants[0].content["splits"][split]
    systems = _systems(variants, split)
    per_query = {name: variant.per_query(split, system) or {} for name, (variant, system) in systems.items()}
    others = {n: values for n, values in per_query.items() if n != reference and systems[n][1] != HYBRID}
    return {
        **{key: first[key] for key in FACTS if key in first},
        "systems": {name: v.content["splits"][split]["systems"][system] for name, (v, system) in systems.items()},
        "comparisons": [c.as_json() for c in compare(metric, per_query[reference], others)],
        **_hybrid(metric, per_query, hybrid_of(reference)),
        "pairs": pairs(metric, {variant.name: per_query[variant.name] for variant in variants}),
        "per_query": per_query,
        "notes": _split_notes(variants, split),
    }


def _hybrid(metric: str, per_query: Mapping[str, Mapping[str, float]], hybrid: str) -> dict[str, Any]:
    """Compares the hybrid search of the reference with all other systems; {} where there is none."""
    if hybrid not in per_query:
        return {}
    others = {name: values for name, values in per_query.items() if name != hybrid}
    return {"hybrid_comparisons": [c.as_json() for c in compare(metric, per_query[hybrid], others)]}


def pairs(metric: str, systems: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Compares every pair of systems, first − second; the t-tests are corrected over all pairs.

    Args:
        metric: The metric's name.
        systems: Values by query id, by name.
    """
    compared = [(a, compare(metric, systems[a], {b: systems[b]})[0]) for a, b in itertools.combinations(systems, 2)]
    corrected = hommel([comparison.t_test for _, comparison in compared])
    return [
        {"system": name} | dataclasses.replace(comparison, t_test_hommel=p).as_json()
        for (name, comparison), p in zip(compared, corrected, strict=True)
    ]


def costs(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Times (seconds, milliseconds) and sizes (bytes) of a variant. Missing measurements are omitted."""
    measured, training = evaluation["costs"], evaluation["costs"].get("training", [])
    figures: dict[str, Any] = {
        "pretraining_seconds": _total(training, "seconds", ("pretraining",)),
        "adaptation_seconds": sum(s["seconds"] for s in training if s["stage"] not in NOT_STAGE_ONE),
        "adaptation_examples": sum(s["examples"] for s in training if s["stage"] not in NOT_STAGE_ONE),
        "tuning_seconds": _total(training, "seconds", ("contrastive",)),
        "tuning_examples": _total(training, "examples", ("contrastive",)),
        **{key: measured.get(key) for key in COSTS},
        **{key: evaluation.get("efficiency", {}).get(key) for key in EFFICIENCY},
    }
    if "query_encoding_ms" in measured and "query_search_ms" in measured:
        figures["query_ms"] = measured["query_encoding_ms"] + measured["query_search_ms"]
    return {name: value for name, value in figures.items() if value is not None}


def _total(training: Iterable[Mapping[str, Any]], key: str, stages: tuple[str, ...]) -> float:
    return sum(stage[key] for stage in training if stage["stage"] in stages)


def flat_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """Flattens a `comparison.json` to names that Kubeflow can show; the system's name comes last."""
    measures = parse_measures(",".join(content["measures"]))
    places = {name: split["systems"] for name, split in content["splits"].items()}
    if zero_shot := content.get(ZERO_SHOT):
        places |= {name: systems for name, systems in zero_shot["collections"].items() if name not in places}
        places[ZERO_SHOT] = zero_shot["mean"]
    quality = {
        f"{slug(place)}_{measure.key}_{slug(system)}": float(values[measure.name])
        for place, systems in places.items()
        for system, values in systems.items()
        for measure in measures
    }
    return quality | {
        f"training_seconds_{slug(name)}": float(figures["adaptation_seconds"] + figures["tuning_seconds"])
        for name, figures in content["costs"].items()
    }
