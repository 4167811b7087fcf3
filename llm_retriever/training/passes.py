"""The number of rows that go through a model at once after memory ran out: fewer, with the same loss and gradients."""

from __future__ import annotations

import os

DIVISOR = "LLM_RETRIEVER_PASS_DIVISOR"
"""Environment variable: rows of a training's passes through the model are divided by this; a power of two."""


def divisor() -> int:
    """Number that the rows of a pass are divided by; 1 = as the recipe says."""
    return int(os.environ.get(DIVISOR) or 1)
