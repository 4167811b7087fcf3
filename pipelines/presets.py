"""Presets: named sets of pipeline parameters, and the checks of a run's parameters before anything starts."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings import EvaluationSettings, PartSettings, build, parameters
from llm_retriever.training.trainjob.nodes import nodes_of
from pipelines import form, pods

DIRECTORY = Path(__file__).with_name("presets")
TRAINING = ("adapt", "tune")
"""Stages that can train on several nodes."""
KEYS: dict[str, type] = {"description": str, "base": str, "parameters": dict, "cluster": dict}
"""What a preset's file may hold."""


def names() -> list[str]:
    """Lists all presets that come with the project."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def description(name: str) -> str:
    """Describes a preset in one sentence."""
    return str(_read(name)["description"])


def load(name: str) -> dict[str, Any]:
    """Loads a preset's parameters, by flat name.

    Args:
        name: Of a preset that comes with the project, or the path of a file of one's own, which ends in .toml. Such a file may
            name another preset as its `base`, and holds what differs from it.

    Raises:
        InputError: There is no such preset, or something in it is not as it should be.
    """
    return dict(_read(name)["parameters"])


def cluster(name: str | None) -> dict[str, dict[str, Any]]:
    """Loads the settings of pods in a preset's `[cluster]`, by stage.

    Raises:
        InputError: As `load`.
    """
    return pods.read(_read(name)["cluster"], _path(name)) if name else {}


def _path(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else DIRECTORY / f"{name}.toml"
    if not path.is_file():
        hint = f"use one of {', '.join(names())}, or give a path that ends in .toml"
        raise InputError(f"{name!r} is no preset", field="preset", hint=hint)
    return path


def _read(name: str) -> dict[str, Any]:
    """Reads a preset's file, on top of its base's."""
    path = _path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not valid TOML ({error})", file=path) from None
    for key, value in content.items():
        if not isinstance(value, KEYS.get(key, ())):
            hint = f"use {', '.join(KEYS)}; parameters have a table of their own, [parameters]"
            raise InputError("is no key of a preset, or of another type", file=path, field=key, hint=hint)
    own = {"parameters": _parameters(content.get("parameters", {}), path), "cluster": content.get("cluster", {})}
    pods.read(own["cluster"], path)
    base = _base(content["base"], path) if "base" in content else {}
    return {
        "description": content.get("description", base.get("description", "")),
        "parameters": over(base.get("parameters", {}), own["parameters"]),
        "cluster": _over(base.get("cluster", {}), own["cluster"]),
    }


def _base(name: str, path: Path) -> dict[str, Any]:
    if name not in names():
        hint = f"use one of {', '.join(names())}"
        raise InputError(f"{name!r} is no preset of the project", file=path, field="base", hint=hint)
    return _read(name)


def over(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Puts parameters in place of a preset's, by flat name.

    What a preset says of its backbone, as how many of its layers are kept, does not hold for another one.
    """
    is_other = own.get("backbone", preset.get("backbone")) != preset.get("backbone")
    return {name: value for name, value in preset.items() if not (is_other and name.startswith("backbone_"))} | {**own}


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Puts one table `[cluster]` over another, and the tables of stages inside them too."""
    nested = {key: {**base[key], **own[key]} for key in own if key in base and key in pods.STAGES}
    return {**base, **own, **nested}


def _parameters(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Checks the names in a file; one that no pipeline has would otherwise be left out as those of other pipelines are."""
    try:
        return {name: form.typed(name, value) for name, value in form.unfolded(content).items()}
    except InputError as error:
        raise InputError(error.problem, file=path, field=error.field, hint=error.hint) from None


def parsed(known: Iterable[str], assignments: list[str]) -> dict[str, Any]:
    """Parses `key=value` texts by flat name, with values of the right types.

    Args:
        known: The names that may be given; objects of options may be given for their stages.
        assignments: The texts.

    Raises:
        InputError: A text is not of this form, there is no such name, or the value has another type.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            hint = "write for instance adapt_method=none"
            raise InputError(f"{assignment!r} is not of the form key=value", hint=hint)
        values[name] = text
    objects = {name: _json(name, text) for name, text in values.items() if name.endswith("_options")}
    flat = form.unfolded({**values, **objects})
    names = set(known)
    return {name: value if name not in values else _typed(name, value, names) for name, value in flat.items()}


def _typed(name: str, text: str, known: Collection[str]) -> Any:
    flat = form.flat_names().get(name)
    if flat is None and name in known:
        return text  # of one pipeline alone, as the recipe of retrain
    if flat is None or name not in known or flat.parameter.type is str:
        return form.typed(name, text, known)
    return form.typed(name, _json(name, text.lower() if flat.parameter.type is bool else text), known)


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _check_measures(settings: EvaluationSettings) -> None:
    with contextlib.suppress(ImportError):  # where only kfp is installed, the step will say so
        from llm_retriever.evaluation.splits import chosen_measures

        chosen_measures(settings)


def _check_pods(parameters: dict[str, Any]) -> None:
    told = form.folded(parameters).pods
    for stage in pods.STAGES:
        try:
            pods.settings_of(stage, told)
        except InputError as error:
            names = [n for n, flat in form.flat_names().items() if n in parameters and flat.place is None]
            own = [n for n in names if form.flat_names()[n].key == error.field and stage in form.flat_names()[n].stages]
            raise InputError(error.problem, field=own[0] if own else error.field, hint=error.hint) from None


def check(given: dict[str, Any]) -> None:
    """Validates a run's parameters against the settings of every step, before anything starts.

    Args:
        given: By flat name; what is missing has its default.

    Raises:
        InputError: A value is outside its limits; the field is named as people write it.
    """
    for stage, settings in (*form.SETTINGS.items(), ("index", PartSettings)):
        values = {key: given[name] for key in parameters(settings) if (name := form.flat_name(stage, key)) in given}
        try:
            built: Any = build(settings, values)
            if stage in TRAINING:
                nodes_of(built)
            if stage == "eval":
                _check_measures(built)
        except InputError as error:
            field = form.flat_name(stage, error.field or "")
            raise InputError(error.problem, field=field, hint=error.hint) from None
    _check_pods(given)
    for name in (name for name in form.DEFAULTS if given.get(name) == ""):
        raise InputError("a cluster must be told how many GPUs a pod gets", field=name, hint="give 0, 1, 2, 4, 8 or 16")
    if given.get(form.PARTS, 1) > 1 and not given.get("index_shards_uri"):
        hint = "give a directory or s3:// prefix that all pods can write to"
        raise InputError("several parts need a place for their shards", field="index_shards_uri", hint=hint)
