"""Settings that travel to a step in one JSON object, and those that its pod holds in an environment variable."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.settings.common import Place
from llm_retriever.settings.parameters import Parameter, nearest, parameters

OPTIONS = "options"
"""The parameter of a component that holds the object; a pipeline has one for every stage, as `tune_options`."""
OVERRIDES = "overrides"
"""The parameter of a component that holds what one variant of a comparison sets: any settings, and they win."""
POD_SETTINGS = "LLM_RETRIEVER_POD_SETTINGS"
"""Environment variable with a JSON object of the settings that are written into a pod."""


def option_names(settings: type) -> list[str]:
    """Names of the settings that are keys of the JSON object."""
    return [name for name, parameter in parameters(settings).items() if parameter.place is Place.OPTIONS]


def checked_options(settings: type, options: Any, field: str, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Checks names and types of a JSON object of options; limits are checked where the settings are built.

    Args:
        settings: Settings class of the stage.
        options: The object, as it was read.
        field: What it is called where it was given, as `tune_options`.
        keys: Those that it may have; None = `option_names`.

    Raises:
        InputError: It is no object, a key is unknown or has a parameter of its own, or a value has another type.
    """
    if not isinstance(options, Mapping):
        raise InputError(f"{options!r} is no JSON object", field=field, hint='write for instance {"lora_rank": 64}')
    known, keys = parameters(settings), option_names(settings) if keys is None else keys
    for name in options:
        if name not in keys:
            apart = name in known and known[name].place in (Place.FORM, Place.RUN)
            problem = "has a parameter of its own" if apart else "is not a key of these options"
            raise InputError(problem, field=f"{field}.{name}", hint="give it there" if apart else nearest(name, keys))
    return {name: as_type(value, known[name], f"{field}.{name}") for name, value in options.items()}


def as_type(value: Any, parameter: Parameter, field: str) -> Any:
    """Converts a JSON value to a setting's type; whole numbers may be floats, which is how Kubeflow hands them on.

    Raises:
        InputError: It is of another type.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if parameter.type is int and number and value == int(value):
        return int(value)
    if parameter.type is float and number:
        return float(value)
    if type(value) is not parameter.type or (isinstance(value, float) and not number):
        hint = f"give for instance {json.dumps(parameter.default)}"
        raise InputError(f"{value!r} is not of type {parameter.type.__name__}", field=field, hint=hint)
    return value


def pod_settings(environment: Mapping[str, str], own: Iterable[str]) -> dict[str, Any]:
    """Reads the settings that the pod's environment holds for a step; those of other steps are left out.

    Raises:
        InputError: The variable is no JSON object.
    """
    text = environment.get(POD_SETTINGS, "")
    try:
        given = json.loads(text) if text else {}
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error})", field=POD_SETTINGS, hint="leave it to `compile`") from None
    if not isinstance(given, dict):
        raise InputError(f"{text!r} is no JSON object", field=POD_SETTINGS, hint="leave it to `compile`")
    names = set(own)
    return {name: value for name, value in given.items() if name in names}
