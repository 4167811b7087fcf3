"""The ranking functions of the sparse first stage, as Lucene computes them: BM25 and statistical query likelihood.

BM25's two settings of the field are Anserini's: its default, and the values tuned on MS MARCO passages. Query likelihood
(Zhai and Lafferty, 2004) smooths a passage's word frequencies with the corpus's, p(w|C), which Lucene takes as
(cf + 1) / (|C| + 1). A query scores, summed over those of its words that the passage d has,

- with Dirichlet smoothing ``log(1 + tf / (mu p(w|C))) + log(mu / (|d| + mu))``, a negative term counted as 0;
- with Jelinek-Mercer smoothing ``log(1 + (1 - lambda) tf / (lambda |d| p(w|C)))``.

Lucene keeps |d| in one byte, so that the lengths of long passages are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings import MiningSettings, is_unset

PACKAGE = "org.apache.lucene.search.similarities"
PRESETS: Mapping[str, tuple[float, float]] = {"default": (0.9, 0.4), "msmarco-tuned": (0.82, 0.68)}


@dataclass(frozen=True)
class Similarity:
    """A ranking function and its parameters.

    Attributes:
        key: Its short name in settings and file names.
        label: As the literature's tables name it; the tag of its runs.
        description: What it is.
        java: Lucene's class.
        parameters: In the order of that class's constructor.
    """

    key: str
    label: str
    description: str
    java: str
    parameters: Mapping[str, float]

    def as_request(self) -> dict[str, Any]:
        """The request by which Lucene's process is asked for it."""
        return {"java": f"{PACKAGE}.{self.java}", "arguments": list(self.parameters.values())}


@dataclass(frozen=True)
class _Smoothing:
    label: str
    description: str
    java: str
    parameter: str
    default: float
    high: float


SMOOTHINGS: Mapping[str, _Smoothing] = {
    "qld": _Smoothing(
        "QLM-D", "query likelihood, Dirichlet smoothing", "LMDirichletSimilarity", "mu", 1000.0, float("inf")
    ),
    "qljm": _Smoothing(
        "QLM-JM", "query likelihood, Jelinek-Mercer smoothing", "LMJelinekMercerSimilarity", "lambda", 0.1, 1.0
    ),
}


def bm25(k1: float, b: float) -> Similarity:
    """Returns BM25 with these parameters."""
    return Similarity("bm25", "BM25", "BM25", "BM25Similarity", {"k1": k1, "b": b})


def chosen_bm25(settings: MiningSettings) -> Similarity:
    """Returns the BM25 of the settings: a preset, of which either parameter may be given another value."""
    k1, b = PRESETS[settings.bm25]
    return bm25(
        k1 if is_unset(settings.bm25_k1) else settings.bm25_k1, b if is_unset(settings.bm25_b) else settings.bm25_b
    )


def parse_baselines(text: str) -> list[Similarity]:
    """Parses ``"qld, qljm:0.2"`` into ranking functions, each once.

    Raises:
        InputError: A name is unknown or stands twice, or a value is out of its limits.
    """
    similarities = [_baseline(entry.strip()) for entry in text.split(",") if entry.strip()]
    if len({baseline.key for baseline in similarities}) < len(similarities):
        raise InputError("names a baseline twice", field="baselines", hint="name each once")
    return similarities


def _baseline(entry: str) -> Similarity:
    key, colon, value = (part.strip() for part in entry.partition(":"))
    kind = SMOOTHINGS.get(key)
    if kind is None:
        hint = f"use {' or '.join(SMOOTHINGS)}, separated by commas"
        raise InputError(f"{key!r} is no baseline", field="baselines", hint=hint)
    try:
        number = float(value) if colon else kind.default
    except ValueError:
        number = 0.0
    if not 0 < number <= kind.high or number == float("inf"):
        hint = f"give a number above 0{'' if kind.high == float('inf') else f', at most {kind.high:g}'}"
        raise InputError(f"{kind.parameter} {value!r} is refused", field="baselines", hint=hint)
    return Similarity(key, kind.label, kind.description, kind.java, {kind.parameter: number})
