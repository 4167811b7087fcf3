"""Conditions for a first version: training was worth it, and search is better than without a model at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from llm_retriever.metrics.conventions import ALPHA, BACKBONE, BM25, HYBRID, RETRIEVER, p_equals

_NAMES = {RETRIEVER: "The retriever", HYBRID: "Hybrid search", BACKBONE: "its un-tuned backbone", BM25: "BM25"}
_SUBJECTS = {BACKBONE: "The un-tuned backbone", BM25: "BM25"}


@dataclasses.dataclass(frozen=True)
class Lead:
    """Difference between a system and a baseline on the split that decides.

    Attributes:
        system: `retriever` or `hybrid`.
        baseline: `backbone` or `BM25`.
        metric: That was tested: the evaluation's primary one.
        difference: Mean over the queries of system − baseline.
        p: p of the paired t-test, corrected for all baselines of the split (Hommel).
    """

    system: str
    baseline: str
    metric: str
    difference: float
    p: float

    @property
    def is_significant(self) -> bool:
        """Whether the system is significantly better."""
        return self.difference > 0 and self.p < ALPHA

    def __str__(self) -> str:
        if self.is_significant:
            verdict = "is significantly better than"
        else:
            verdict = "is worse than" if self.difference < 0 else "is not significantly better than"
        figures = f"{self.metric} {self.difference:+.4f}, {p_equals(self.p)}"
        return f"{_NAMES[self.system]} {verdict} {_NAMES[self.baseline]}: {figures}."


def leads(split: Mapping[str, Any]) -> tuple[Lead, ...]:
    """Reads the leads of a split of `evaluation.json` that a first version is judged by."""
    return tuple(_leads(split))


def _leads(split: Mapping[str, Any]) -> Iterator[Lead]:
    for system, key in ((RETRIEVER, "comparisons"), (HYBRID, "hybrid_comparisons")):
        for row in split.get(key) or []:
            name = row["baseline"]
            if name == BM25 or (name, system) == (BACKBONE, RETRIEVER):
                yield Lead(
                    system,
                    name,
                    row["metric"],
                    float(row["mean_difference"]),
                    float(row.get("t_test_hommel", row["t_test"])),
                )


def deserves_to_be_first(leads: tuple[Lead, ...]) -> tuple[bool, list[str]]:
    """Judges whether a retriever may be the first version, with reasons.

    It must be significantly better than its un-tuned backbone, and it or its hybrid significantly better than BM25. What was
    not measured is not asked for.

    Args:
        leads: The leads on the split that decides.
    """
    passed, reasons = True, list[str]()
    for baseline in (BACKBONE, BM25):
        rows = [lead for lead in leads if lead.baseline == baseline]
        passed &= not rows or any(lead.is_significant for lead in rows)
        reasons += map(str, rows) if rows else [f"{_SUBJECTS[baseline]} was not measured on this split."]
    return passed, reasons
