"""Spells names that people choose as identifiers."""

from __future__ import annotations

import re


def slug(name: str) -> str:
    """Spells a name in lower-case letters, digits and underscores, as Kubeflow's parameters and metrics are.

    >>> slug("LLM-QL, 0.6")
    'llm_ql_0_6'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
