"""Converts settings classes to parameters (names, types, defaults, help), and values back to settings."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from llm_retriever.errors import InputError
from llm_retriever.settings.common import OneOf, Place

SettingsClass = TypeVar("SettingsClass")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One setting, as the form, the command line and the READMEs show it."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    place: Place = Place.OPTIONS


def parameters(settings: type) -> dict[str, Parameter]:
    """Lists the settings of a class, in the order of its fields."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {f.name: _parameter(f.name, hints[f.name], _default(f)) for f in dataclasses.fields(settings)}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    help_text, choices, place = "", tuple[str, ...](), Place.OPTIONS
    while typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        help_text = next((note.description for note in notes if getattr(note, "description", None)), help_text)
        place = next((note for note in reversed(notes) if isinstance(note, Place)), place)
        choices = next((tuple(note.names) for note in notes if isinstance(note, OneOf)), choices)
    if typing.get_origin(hint) is Literal:
        choices, hint = typing.get_args(hint), str
    return Parameter(name, typing.get_origin(hint) or hint, default, help_text, choices, place)


def build(settings: type[SettingsClass], values: dict[str, Any]) -> SettingsClass:
    """Validates `values` (numbers and booleans may be given as text) and returns the settings.

    Raises:
        InputError: A name is unknown, or a value has the wrong type or lies outside its limits.
    """
    known = parameters(settings)
    for name in values:
        if name not in known:
            raise InputError("is not a setting of this step", field=name, hint=nearest(name, known))
    try:
        built = TypeAdapter(settings).validate_python(values)
        _check_finite(built)
        return built
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        raise InputError(f"{first['input']!r} is refused", field=field, hint=_hint(first["msg"])) from None


def _check_finite(settings: Any) -> None:
    """Raises InputError where a number is infinite or NaN: limits such as `ge=0` let infinity through."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{value} is refused", field=field.name, hint="give a finite number")


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggests a name in place of one that is not known: the nearest one, or else one of all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(names)}"


def _hint(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def as_dict(settings: Any) -> dict[str, Any]:
    """Converts settings to plain JSON values, for manifests."""
    return dataclasses.asdict(settings)
