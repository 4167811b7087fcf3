"""Names that people choose, in the spelling that identifiers allow."""

from __future__ import annotations

import re


def slug(name: str) -> str:
    """A name in lower-case letters, digits and underscores, as parameters and metrics of Kubeflow are named.

    >>> slug("LLM-QL, 0.6")
    'llm_ql_0_6'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
