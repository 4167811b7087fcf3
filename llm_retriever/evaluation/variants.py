"""Reads the evaluations that the step `compare` compares, alike in all but the variant."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.files.names import slug
from llm_retriever.metrics.content import check_content
from llm_retriever.metrics.conventions import BACKBONE, BM25, EVALUATION_FILE, RETRIEVER, hybrid_of

FORMAT = 1
NEEDED = ("per_query", "relevance_level", "judgments", "notes")
UNTUNED = "un-tuned backbone"
ZERO_SHOT = "zero_shot"
SHARED = {
    "collection": "evaluate all variants on the output of the same prepare_corpus",
    "measures": "evaluate all variants with the same measures",
    "primary_metric": "evaluate all variants with the same primary metric",
    "depth": "evaluate all variants with the same depth",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A variant's evaluation.

    Attributes:
        file: Its `evaluation.json`.
        content: Its content.
    """

    name: str
    description: str
    file: Path
    content: Mapping[str, Any]

    def per_query(self, split: str, system: str = RETRIEVER) -> dict[str, float] | None:
        """The primary metric by query id; None where the system was not evaluated."""
        values: dict[str, float] | None = self.content["splits"][split]["per_query"].get(system)
        return values


def open_evaluations(evaluations: Mapping[str, Path], variants: str = "") -> list[Variant]:
    """Reads the evaluations, in the order of `variants` (JSON: description by name) where it is given.

    Raises:
        InputError: There are fewer than two, `variants` does not fit them, or one is no evaluation.
    """
    descriptions = _descriptions(variants) if variants else dict.fromkeys(evaluations, "")
    by_slug = {slug(name): path for name, path in evaluations.items()}
    if sorted(by_slug) != sorted(map(slug, descriptions)) or len(by_slug) != len(evaluations):
        raise InputError(
            f"the names {', '.join(descriptions)} are not those of the evaluations ({', '.join(evaluations)})",
            field="variants",
            hint="name every evaluation once",
        )
    if len(evaluations) < 2:
        raise InputError("there are fewer than two evaluations", field="evaluations", hint="give at least two")
    taken = {"", *map(slug, (RETRIEVER, BM25, BACKBONE))}
    beginnings = (slug(UNTUNED), slug(hybrid_of("")))
    reserved = [name for name in descriptions if slug(name) in taken or slug(name).startswith(beginnings)]
    if reserved:
        raise InputError(f"{reserved[0]!r} cannot name a variant", field="evaluations", hint="choose another name")
    return [_open(name, text, by_slug[slug(name)] / EVALUATION_FILE) for name, text in descriptions.items()]


def _descriptions(text: str) -> dict[str, str]:
    try:
        descriptions = json.loads(text)
        if not isinstance(descriptions, dict) or not all(isinstance(value, str) for value in descriptions.values()):
            raise ValueError("not an object of texts")
    except ValueError as error:
        raise InputError(
            f"not a JSON object ({error})", field="variants", hint='write for instance {"llm-ql": "QL and LoRA"}'
        ) from None
    return descriptions


def _open(name: str, description: str, file: Path) -> Variant:
    content = files.read_json(file, hint="give the output of evaluate")
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise InputError("not an evaluation of this version (format)", file=file, hint="evaluate the variant anew")
    check_content(content, file, ("costs", "lineage", "method", "recipe", "notes", *SHARED))
    for split_name, split in content["splits"].items():
        _check_split(split, file, f"splits.{split_name}")
    return Variant(name, description, file, content)


def _check_split(split: Mapping[str, Any], file: Path, field: str) -> None:
    """Raises InputError for a split without what is compared."""
    hint = "evaluate the variant anew"
    for key in NEEDED:
        if key not in split:
            raise InputError("is missing", file=file, field=f"{field}.{key}", hint=hint)
    if RETRIEVER not in split["per_query"] or split["systems"].keys() != split["per_query"].keys():
        raise InputError(
            "its systems are not those by query, the retriever among them", file=file, field=field, hint=hint
        )


def check_alike(variants: list[Variant]) -> None:
    """Raises InputError for variants that were not evaluated on the same queries in the same way.

    Raises:
        InputError: It names the first evaluation that differs, and in what.
    """
    first, *others = variants
    for other in others:
        for key, hint in SHARED.items():
            _check_same(first, other, key, first.content[key], other.content[key], hint)
        ours, theirs = (list(v.content["splits"]) for v in (first, other))
        _check_same(first, other, "splits", ours, theirs, "evaluate all variants on the same splits")
        for split in first.content["splits"]:
            _check_same_queries(first, other, split)


def _check_same(first: Variant, other: Variant, field: str, ours: Any, theirs: Any, hint: str) -> None:
    if ours != theirs:
        raise InputError(
            f"{_shown(theirs)} of {other.name} differs from {_shown(ours)} of {first.name}",
            file=other.file,
            field=field,
            hint=hint,
        )


def _shown(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:12] + "…"


def _check_same_queries(first: Variant, other: Variant, split: str) -> None:
    ours, theirs = (v.content["splits"][split].get("collection", "") for v in (first, other))
    _check_same(first, other, f"collection of {split}", ours, theirs, SHARED["collection"])
    ours, theirs = (v.content["splits"][split]["relevance_level"] for v in (first, other))
    _check_same(first, other, "relevance_level", ours, theirs, "evaluate all variants with the same relevance level")
    queries = [set(v.per_query(split) or ()) for v in (first, other)]
    if queries[0] != queries[1]:
        raise InputError(
            f"{other.name} and {first.name} were not evaluated on the same queries of {split}: {len(queries[1] - queries[0]):,} "
            f"only of {other.name}, {len(queries[0] - queries[1]):,} only of {first.name}",
            file=other.file,
            field="splits",
            hint=SHARED["collection"],
        )
    lexical = [v.per_query(split, BM25) for v in (first, other)]
    if None not in lexical and lexical[0] != lexical[1]:
        raise InputError(
            f"BM25 of {other.name} differs from that of {first.name} on {split}",
            file=other.file,
            hint="evaluate all variants with the output of the same mine_negatives",
        )


def chosen_reference(variants: list[Variant], requested: str) -> str:
    """Name of the variant that all others are tested against: the requested one, or the first.

    Raises:
        InputError: There is no such variant.
    """
    names = [variant.name for variant in variants]
    matching = [name for name in names if slug(name) == slug(requested)] if requested else names[:1]
    if not matching:
        raise InputError(f"{requested!r} is no variant", field="reference", hint=f"use one of {', '.join(names)}")
    return matching[0]
