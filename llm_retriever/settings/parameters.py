"""Settings classes as parameters: names, types, defaults, help; and from given values back to settings."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from llm_retriever.errors import InputError
from llm_retriever.settings.common import UNSET_NUMBER, UNSET_TEXT

SettingsClass = TypeVar("SettingsClass")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One setting, as the form, the command line and the READMEs show it."""

    name: str
    type: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()


def parameters(settings: type) -> dict[str, Parameter]:
    """The settings of a class, in the order of its fields."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {f.name: _parameter(f.name, hints[f.name], f.default) for f in dataclasses.fields(settings)}


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    help_text, choices = "", ()
    while typing.get_origin(hint) is Annotated:
        hint, *notes = typing.get_args(hint)
        help_text = next((note.description for note in notes if getattr(note, "description", None)), help_text)
    if typing.get_origin(hint) is Literal:
        choices, hint = typing.get_args(hint), str
    return Parameter(name, hint, default, help_text, choices)


def build(settings: type[SettingsClass], values: dict[str, Any]) -> SettingsClass:
    """Validates `values` (numbers and booleans may be given as text) and returns the settings.

    Raises:
        InputError: A name is unknown, or a value has the wrong type or lies outside its limits.
    """
    unknown = sorted(set(values) - set(parameters(settings)))
    if unknown:
        raise InputError(
            "is not a setting of this step", field=unknown[0], mend=f"use one of {', '.join(parameters(settings))}"
        )
    try:
        return TypeAdapter(settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else None
        raise InputError(f"{first['input']!r} is refused", field=field, mend=_mend(first["msg"])) from None


def _mend(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def as_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain JSON values, for manifests."""
    return dataclasses.asdict(settings)


def is_unset(value: Any) -> bool:
    """Whether a setting leaves the decision to the recipe."""
    return value == UNSET_TEXT if isinstance(value, str) else value == UNSET_NUMBER
