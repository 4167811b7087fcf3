"""Presets: named sets of pipeline parameters, and the checks that a run's parameters pass before anything starts."""

from __future__ import annotations

import difflib
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings import PartSettings, build, parameters
from pipelines.stages import ALL_SETTINGS, parameter_name

DIRECTORY = Path(__file__).with_name("presets")


def names() -> list[str]:
    """All presets."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def description(name: str) -> str:
    """What a preset is for, in one sentence."""
    return str(_read(name)["description"])


def load(name: str) -> dict[str, Any]:
    """Pipeline parameters of a preset, by name.

    Raises:
        InputError: There is no such preset.
    """
    return dict(_read(name)["parameters"])


def _read(name: str) -> dict[str, Any]:
    path = DIRECTORY / f"{name}.toml"
    if name not in names():
        raise InputError(f"{name!r} is no preset", field="preset", mend=f"use one of {', '.join(names())}")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def defaults(pipeline: Any) -> dict[str, Any]:
    """Parameters of a pipeline function with their defaults."""
    return {name: parameter.default for name, parameter in signature(pipeline).items()}


def signature(pipeline: Any) -> dict[str, inspect.Parameter]:
    """Parameters of a pipeline function, with types and defaults."""
    return dict(inspect.signature(pipeline.pipeline_func).parameters)


def parsed(pipeline: Any, assignments: list[str]) -> dict[str, Any]:
    """`key=value` texts as typed pipeline parameters, the way `kfp run create` takes them.

    Raises:
        InputError: A text is not of this form, the pipeline has no such parameter, or the value has another type.
    """
    known = signature(pipeline)
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(
                f"{assignment!r} is not of the form key=value", mend="write for instance adapt_method=none"
            )
        values[name] = _typed(name, text, known)
    return values


def _typed(name: str, text: str, known: dict[str, inspect.Parameter]) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise InputError(
            "is no parameter of this pipeline", field=name, mend=f"did you mean {near[0]}?" if near else ""
        )
    wanted = known[name].annotation
    if wanted is str:
        return text
    try:
        value = json.loads(text.lower() if wanted is bool else text)
    except json.JSONDecodeError:
        value = text
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not wanted:
        raise InputError(
            f"{text!r} is not of type {wanted.__name__}", field=name, mend=f"give for instance {known[name].default!r}"
        )
    return value


def check(given: dict[str, Any]) -> None:
    """Validates a complete set of pipeline parameters against the settings of every step, before anything starts.

    Raises:
        InputError: A value is outside its limits; the field is named as the pipeline names it.
    """
    for prefix, settings in (*ALL_SETTINGS.items(), ("index", PartSettings)):
        values = {
            setting: given[parameter_name(prefix, setting)]
            for setting in parameters(settings)
            if parameter_name(prefix, setting) in given
        }
        try:
            build(settings, values)
        except InputError as error:
            raise InputError(error.problem, field=parameter_name(prefix, error.field or ""), mend=error.mend) from None
    if given.get("index_parts", 1) > 1 and not given.get("index_shards_uri"):
        mend = "give a directory or s3:// prefix that all pods can write to"
        raise InputError("several parts need a place for their shards", field="index_shards_uri", mend=mend)
