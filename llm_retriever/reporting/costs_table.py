"""The efficiency table of the report (LLM-QL, Table 9, and more), every figure as people read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_retriever.progress import seconds_as_text

Figures = Mapping[str, Any]


def size_as_text(number: float) -> str:
    """Formats a number of bytes: ``15.2 MB``, ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if round(number, 0 if unit == "B" else 1) < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def large(number: float) -> str:
    """Formats a large number in three digits: ``6.9 million``, ``1.6 · 10¹⁵``."""
    if number < 1e6:
        return f"{number:,.0f}"
    for limit, name in ((1e9, "million"), (1e12, "billion")):
        if float(shown := f"{number / limit * 1000:.3g}") < 1000:
            return f"{shown} {name}"
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa} · 10{str(int(exponent)).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def hours(number: float) -> str:
    """Formats hours of processes: ``36s``, ``2h07m``, ``184 h``."""
    return f"{number:,.0f} h" if number >= 100 else seconds_as_text(3600 * number)


def counted(number: float, singular: str, plural: str) -> str:
    """Formats a number of things: ``1 example``, ``20 examples``."""
    return f"{number:,.0f} {singular if number == 1 else plural}"


ROWS: tuple[tuple[str, tuple[tuple[str, Callable[[Any], str]], ...]], ...] = (
    (
        "training in total",
        (
            ("training_seconds", seconds_as_text),
            ("training_process_hours", lambda v: f"{hours(v)} of all processes together"),
            ("batch_size", lambda v: f"{counted(v, 'query', 'queries')} per update in the last stage"),
        ),
    ),
    (
        "building the index",
        (
            ("index_seconds", lambda v: f"{seconds_as_text(v)} of all processes together"),
            ("passages_per_second", lambda v: f"{v:,.0f} passages per second and process"),
            ("tokens_per_second", lambda v: f"{v:,.0f} tokens per second and process"),
            ("padding_share", lambda v: f"{100 * v:.1f} % padding"),
            ("index_operations_per_second", lambda v: f"{large(v)} floating-point operations per second and process"),
        ),
    ),
    (
        "size of the index",
        (
            ("index_bytes", size_as_text),
            ("bytes_per_passage", lambda v: f"{v:,.0f} bytes per passage"),
            ("dimension", lambda v: f"{v:,} dimensions"),
            ("dtype", lambda v: f"in {v}"),
        ),
    ),
    (
        "one query, in large batches",
        (
            ("query_encoding_ms", lambda v: f"{v:.1f} ms to encode"),
            ("query_search_ms", lambda v: f"{v:.1f} ms to search"),
            ("queries_per_second", lambda v: f"{v:,.0f} per second"),
        ),
    ),
    (
        "model",
        (
            ("parameters", lambda v: f"{large(v)} weights besides the input embeddings"),
            ("device", lambda v: f"on {v}"),
        ),
    ),
    (
        "most memory of this evaluation",
        (("peak_memory_bytes", size_as_text), ("gpu_peak_bytes", lambda v: f"{size_as_text(v)} on the GPU")),
    ),
)
STAGE: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("seconds", seconds_as_text),
    ("examples", lambda v: counted(v, "example", "examples")),
    ("processes", lambda v: counted(v, "process", "processes")),
    ("batch_size", lambda v: f"{v:,} per update"),
    ("operations_at_most", lambda v: f"about {large(v)} floating-point operations"),
)
EVALUATED = (
    ("evaluating the version in production", "production_seconds"),
    ("evaluating the un-tuned backbone", "untuned_backbone_seconds"),
)
RERANKING: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("seconds", seconds_as_text),
    ("pairs", lambda v: f"{v:,} pairs of query and passage"),
    ("tokens", lambda v: f"{v:,} tokens"),
)


def efficiency_rows(evaluation: Figures) -> list[tuple[str, str]]:
    """Heads and figures of the table. Missing measurements are omitted."""
    return [(head, text) for head, text in _rows(evaluation) if text]


def _rows(evaluation: Figures) -> Iterator[tuple[str, str]]:
    efficiency, costs = evaluation.get("efficiency", {}), evaluation.get("costs", {})
    for stage in efficiency.get("training", ()):
        yield f"training: {stage['stage']}", _joined(stage, STAGE)
    for head, parts in ROWS:
        yield head, _joined(efficiency, parts)
    for head, key in EVALUATED:
        if key in costs:
            yield head, seconds_as_text(costs[key])
    for name, seconds in costs.get("encoder_seconds", {}).items():
        yield f"evaluating {name}", seconds_as_text(seconds)
    yield "re-ranking", _joined(evaluation.get("rerank", {}), RERANKING)


def _joined(figures: Figures, parts: tuple[tuple[str, Callable[[Any], str]], ...]) -> str:
    return ", ".join(write(figures[key]) for key, write in parts if key in figures)
