"""Optional analyses: each adds systems to the bench, or content to `evaluation.json`.

A new one is a function in a file of its own and a line in `EXTRAS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_retriever.evaluation.evaluation_run import Bench
from llm_retriever.models.card import RetrieverCard
from llm_retriever.settings import EvaluationSettings


@dataclass(frozen=True)
class Paths:
    """The inputs of the step, and where its output grows.

    Attributes:
        adapted: The backbone after stage one, where it was given.
        draft: Becomes the output `evaluation`; what an extra writes there is kept.
        refreshed: Becomes the output `refreshed`.
    """

    index: Path
    retriever: Path
    backbone: Path
    adapted: Path | None
    collection: Path
    bm25_runs: Path
    draft: Path
    refreshed: Path


Extra = Callable[[EvaluationSettings, Bench, RetrieverCard, Paths], dict[str, Any]]
"""Called when all other systems of the bench have been judged and before anything is compared. It may call
`bench.add_run` or `bench.add_dense` and append to `bench.notes`; what it returns is added to `evaluation.json`, {} where
the settings leave it out."""

EXTRAS: tuple[str, ...] = (
    "llm_retriever.reranking.rerank:extra",
    "llm_retriever.reranking.attention:extra",
    "llm_retriever.evaluation.training_curves:extra",
)
"""``module:function`` of every extra; its module is imported when it runs. Where the module has a function ``check``, it is
called with settings, card and paths before anything is encoded, and refuses inputs that cannot be used."""


def check_analyses(settings: EvaluationSettings, card: RetrieverCard, paths: Paths) -> None:
    """Checks the inputs of every analysis.

    Raises:
        InputError: One cannot be used.
    """
    for name in EXTRAS:
        check = getattr(importlib.import_module(name.partition(":")[0]), "check", None)
        if check is not None:
            check(settings, card, paths)


def run_analyses(settings: EvaluationSettings, bench: Bench, card: RetrieverCard, paths: Paths) -> dict[str, Any]:
    """Runs every analysis, and returns the content that they add to `evaluation.json`."""
    content: dict[str, Any] = {}
    for name in EXTRAS:
        module, function = name.split(":")
        extra: Extra = getattr(importlib.import_module(module), function)
        content |= extra(settings, bench, card, paths)
    return content
