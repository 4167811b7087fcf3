"""Presets: named sets of pipeline parameters, and the checks that a run's parameters pass before anything starts."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings import EvaluationSettings, PartSettings, build, parameters
from llm_retriever.trainjob.nodes import nodes_of
from pipelines import pods
from pipelines.stages import ALL_SETTINGS, check_placement, parameter_name

DIRECTORY = Path(__file__).with_name("presets")
TRAINING = ("adapt", "tune")
"""Stages that can train on several nodes."""
KEYS: dict[str, type] = {"description": str, "base": str, "parameters": dict, "cluster": dict}
"""What a preset's file may hold."""


def names() -> list[str]:
    """All presets that come with the project."""
    return sorted(path.stem for path in DIRECTORY.glob("*.toml"))


def description(name: str) -> str:
    """What a preset is for, in one sentence."""
    return str(_read(name)["description"])


def load(name: str) -> dict[str, Any]:
    """Pipeline parameters of a preset, by name.

    Args:
        name: Of a preset that comes with the project, or the path of a file of one's own, which ends in .toml. Such a file may
            name another preset as its `base`, and holds what differs from it.

    Raises:
        InputError: There is no such preset, or something in it is not as it should be.
    """
    return dict(_read(name)["parameters"])


def cluster(name: str | None) -> dict[str, pods.PodSettings]:
    """What a preset gives the pods beyond the form, by stage; without a preset the defaults.

    Raises:
        InputError: As `load`.
    """
    return pods.read(_read(name)["cluster"], _path(name)) if name else pods.read({})


def _path(name: str) -> Path:
    path = Path(name) if name.endswith(".toml") else DIRECTORY / f"{name}.toml"
    if not path.is_file():
        mend = f"use one of {', '.join(names())}, or give a path that ends in .toml"
        raise InputError(f"{name!r} is no preset", field="preset", mend=mend)
    return path


def _read(name: str) -> dict[str, Any]:
    """A preset's file, on top of its base's."""
    path = _path(name)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not valid TOML ({error})", file=path) from None
    for key, value in content.items():
        if not isinstance(value, KEYS.get(key, ())):
            mend = f"use {', '.join(KEYS)}; parameters have a table of their own, [parameters]"
            raise InputError("is no key of a preset, or of another type", file=path, field=key, mend=mend)
    own = {"parameters": _parameters(content.get("parameters", {}), path), "cluster": content.get("cluster", {})}
    pods.read(own["cluster"], path)
    base = _base(content["base"], path) if "base" in content else {}
    tables = {key: _over(base.get(key, {}), values) for key, values in own.items()}
    return {"description": content.get("description", base.get("description", "")), **tables}


def _base(name: str, path: Path) -> dict[str, Any]:
    if name not in names():
        mend = f"use one of {', '.join(names())}"
        raise InputError(f"{name!r} is no preset of the project", file=path, field="base", mend=mend)
    return _read(name)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """One table over another, and the tables of stages inside them too."""
    return {**base, **own, **{key: {**base[key], **own[key]} for key in own if key in base and key in pods.STAGES}}


def _parameters(given: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values of a file; a name that no pipeline has would otherwise be left out as those of other pipelines are."""
    from pipelines.comparison import form
    from pipelines.train_retriever import train_retriever

    known = {**form().parameters, **signature(train_retriever)}
    values = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            mend = f"did you mean {near[0]}?" if near else ""
            raise InputError("is no parameter of a pipeline", file=path, field=name, mend=mend)
        wanted = known[name].annotation
        values[name] = float(value) if wanted is float and type(value) is int else value
        if type(values[name]) is not wanted:
            mend = f"give for instance {known[name].default!r}"
            raise InputError(f"{value!r} is not of type {wanted.__name__}", file=path, field=name, mend=mend)
    return values


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


def _check_measures(settings: EvaluationSettings) -> None:
    with contextlib.suppress(ImportError):  # where only kfp is installed, the step will say so
        from llm_retriever.evaluation.splits import chosen_measures

        chosen_measures(settings)


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
            built: Any = build(settings, values)
            if prefix in TRAINING:
                nodes_of(built)
            if prefix == "eval":
                _check_measures(built)
        except InputError as error:
            raise InputError(error.problem, field=parameter_name(prefix, error.field or ""), mend=error.mend) from None
    check_placement(given)
    if given.get("index_parts", 1) > 1 and not given.get("index_shards_uri"):
        mend = "give a directory or s3:// prefix that all pods can write to"
        raise InputError("several parts need a place for their shards", field="index_shards_uri", mend=mend)
