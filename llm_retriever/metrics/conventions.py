"""Conventions of every reader of an evaluation: names of files and systems, level of significance, form of p values."""

from __future__ import annotations

EVALUATION_FILE, RUNS_DIRECTORY = "evaluation.json", "runs"
REFRESHED_FOLDER, REFRESHED_FILE = "refreshed", "refreshed.json"
RETRIEVER, PRODUCTION, BM25, BACKBONE = "retriever", "production", "BM25", "backbone"
HYBRID, PRODUCTION_HYBRID = "hybrid", "production-hybrid"
HYBRIDS = (HYBRID, PRODUCTION_HYBRID)
"""Fusions of the retriever, or of that of the version in production, with BM25."""
TRAINING_SPLIT = "train"
FOR_CHOICES = ("dev", "validation", "valid", "heldout")
"""Splits on which something may be chosen; what is reported of others stays honest."""
ALPHA = 0.05
"""p below which a difference is significant."""
SPACE = "\N{NO-BREAK SPACE}"


def hybrid_of(variant: str) -> str:
    """Name of a variant's hybrid search where several variants are compared."""
    return f"{HYBRID} of {variant}"


def p_value(p: float) -> str:
    """Formats a p value: ``0.034``, ``< 0.001``."""
    return f"<{SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """Formats a p value as a statement: ``p = 0.034``, ``p < 0.001``."""
    return f"p{SPACE}{p_value(p)}" if p < 0.001 else f"p{SPACE}={SPACE}{p_value(p)}"
