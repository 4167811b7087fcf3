"""Variants that `compare_methods` compares, each a name and the parameters that it sets, from a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.files.names import slug
from llm_retriever.settings import Place
from pipelines import form, one_pod, presets

DIRECTORY = Path(__file__).with_name("variants")
DEFAULT = "methods"
OWN_STAGES = ("backbone", "adapt", "tune", "index")
OWN = ("eval_query_length",)
RESERVED = ("bm25", "un_tuned_backbone")


@dataclass(frozen=True)
class Variant:
    """One way through the pipeline.

    Attributes:
        name: As tables and tasks show it.
        description: What it is, for readers of the report.
        parameters: Pipeline parameters that it sets; the form decides the others.
    """

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Variants:
    """The content of a file: what it is for, and its variants; the others are tested against the first one."""

    description: str
    variants: tuple[Variant, ...]


def names() -> list[str]:
    """Lists the files that come with the project."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def load(name: str) -> Variants:
    """Reads and checks a file.

    Args:
        name: A file of `names()`, or a path that ends in `.toml`.

    Raises:
        InputError: There is no such file, or something in it is not as it should be; file and variant are named.
    """
    path = Path(name) if name.endswith(".toml") else DIRECTORY / f"{name}.toml"
    if not path.is_file():
        hint = f"use one of {', '.join(names())}, or give a path that ends in .toml"
        raise InputError(f"{name!r} is no file of variants", field="variants", hint=hint)
    content = _read(path)
    variants = tuple(_variant(row, number, path) for number, row in enumerate(content["variant"], 1))
    _check_names(variants, path)
    _check_different(variants, path)
    for variant in variants:
        _check_values(variant, path)
    return Variants(str(content["description"]), variants)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not valid TOML ({error})", file=path) from None
    _check_keys(content, {"description": str, "variant": list}, path, "")
    if len(content["variant"]) < 2:
        raise InputError("there are fewer than two variants", file=path, hint="add another [[variant]]")
    return content


def _check_keys(content: Any, required: Mapping[str, type], path: Path, who: str) -> None:
    """Raises InputError for a table of the file without `required` keys of those types, or with others."""
    for key, kind in required.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind) or not content[key]:
            words: dict[type, str] = {
                str: "a text that is not empty",
                list: "tables [[variant]]",
                dict: "a table with one entry at least",
            }
            raise InputError(f"{who}{key} is missing", file=path, field=key, hint=f"give {words[kind]}")
    others = [key for key in content if key not in required]
    if others:
        raise InputError(
            f"{who}unknown key", file=path, field=others[0], hint=f"use {', '.join(required)}; parameters have a table"
        )


def _variant(row: Any, number: int, path: Path) -> Variant:
    name = row.get("name") if isinstance(row, dict) else None
    who = f"variant {name if isinstance(name, str) and name else number}: "
    _check_keys(row, {"name": str, "description": str, "parameters": dict}, path, who)
    try:
        values = {key: _value(key, value) for key, value in form.unfolded(row["parameters"]).items()}
    except InputError as error:
        raise InputError(who + error.problem, file=path, field=error.field, hint=error.hint) from None
    return Variant(row["name"], " ".join(row["description"].split()), values)


def _value(key: str, value: Any) -> Any:
    if key.startswith("promote_"):
        raise InputError("a comparison publishes nothing", field=key, hint="leave it out")
    typed = form.typed(key, value)
    common = key.split("_")[0] not in OWN_STAGES and key not in OWN
    if common or key == form.PARTS or form.flat_names()[key].place in (None, Place.POD, Place.RUN):
        raise InputError("is the same for all variants", field=key, hint="leave it out, and give it to the run")
    one_pod.check_in_one_pod(key)
    return typed


def _check_names(variants: tuple[Variant, ...], path: Path) -> None:
    taken: dict[str, str] = {}
    for name in (variant.name for variant in variants):
        key = slug(name)
        if not key or any(key.startswith(word) for word in RESERVED) or set(name) & set('",=|{}$'):
            hint = "use letters, digits, spaces and - . + ; not BM25, not the un-tuned backbone"
            raise InputError(f"{name!r} cannot name a variant", file=path, field="name", hint=hint)
        if key in taken:
            raise InputError(
                f"two variants are called {taken[key]!r} and {name!r}",
                file=path,
                field="name",
                hint="names must differ in letters or digits",
            )
        taken[key] = name


def _check_different(variants: tuple[Variant, ...], path: Path) -> None:
    """Raises InputError for two variants that set the same: they would train from the same checkpoints."""
    for number, variant in enumerate(variants):
        for other in variants[:number]:
            if other.parameters == variant.parameters:
                problem = f"{other.name} and {variant.name} are the same"
                raise InputError(problem, file=path, field="variant", hint="leave one of them out")


def _check_values(variant: Variant, path: Path) -> None:
    try:
        presets.check({**form.defaults(), **variant.parameters})
    except InputError as error:
        problem = f"variant {variant.name}: {error.problem}"
        raise InputError(problem, file=path, field=error.field, hint=error.hint) from None


def check_reference(variants: tuple[Variant, ...], reference: str) -> None:
    """Raises InputError for a reference that is none of the variants; "" is the first.

    Raises:
        InputError: It names the variants.
    """
    known = [variant.name for variant in variants]
    if reference and slug(reference) not in map(slug, known):
        raise InputError(
            f"{reference!r} is no variant", field="compare_reference", hint=f"use one of {', '.join(known)}"
        )


def of_variant(variants: Sequence[Variant], number: int) -> dict[str, Any]:
    """What a variant sets, and what is left to others: the un-tuned backbone to the first variant of every backbone that
    can be read out without training, and published encoders to the first of all.

    Args:
        variants: All of them.
        number: Position of the variant.

    Returns:
        By flat name.
    """
    variant = variants[number]
    alike = [other for other in variants if of_backbone(other) == of_backbone(variant)]
    left: dict[str, Any] = {"eval_encoders": ""} if number else {}
    if variant is not next((other for other in alike if not _reads_new_tokens(other)), alike[0]):
        left["eval_untuned_passages"] = 0
    return {**variant.parameters, **left}


def of_backbone(variant: Variant) -> dict[str, Any]:
    """A variant's own settings of its backbone, by flat name."""
    return {n: value for n, value in variant.parameters.items() if "backbone" in form.flat_names()[n].stages}


def _reads_new_tokens(variant: Variant) -> bool:
    """Whether a variant is read out at tokens that an un-tuned backbone does not have."""
    return variant.parameters.get("tune_method") == "llama2vec" or variant.parameters.get("tune_embedding") == "new4"
