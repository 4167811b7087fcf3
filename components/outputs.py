"""Checks the outputs of a step that is started by hand: never over what it reads, and never over what no such step wrote.

Kubeflow's own paths are always fresh.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.files.layouts import ELSEWHERE, OUTPUTS, UNKNOWN, Layout, Page

READ = ("uri", "source", "encoder", "encoders", "runs", "zero_shot", "production_uri")
"""Settings that name what a step reads."""
GROWING = ("shards_uri", "encoder_shards_uri", "production_shards_uri", "checkpoint_uri")
"""Settings that name where it, or another run, writes; an output may lie there, but must not hold it."""


def check_outputs(
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    settings: Mapping[str, Any],
    layouts: Mapping[str, Layout | Page] = OUTPUTS,
) -> None:
    """Raises InputError for outputs that would erase something, before any work.

    Args:
        inputs: Paths by flag.
        outputs: Paths by name.
        settings: Values by name; local paths are found in those that name places.
        layouts: How an earlier output is known, by name; one of another name is never replaced.

    Raises:
        InputError: It names the flag, the path, and what is in danger.
    """
    named = dict(_named_places(settings))
    for name, path in outputs.items():
        flag = "--" + name.replace("_", "-")
        _check_place(flag, path)
        layouts.get(name, UNKNOWN).check(path, argument=flag)
        for other, place in inputs.items():
            _check_apart(flag, path, other, place)
        for setting, places in named.items():
            for place in places:
                _check_apart(flag, path, "--" + setting.replace("_", "-"), place, within=setting in GROWING)
    for (one, path), (other, place) in itertools.combinations(outputs.items(), 2):
        _check_apart("--" + one.replace("_", "-"), path, "--" + other.replace("_", "-"), place)


def _check_place(flag: str, path: Path) -> None:
    """Raises InputError for what cannot be renamed, or would take the ground from under the shell."""
    whole = path.resolve()
    if os.path.ismount(whole):
        raise InputError("a mounted directory cannot be replaced", file=path, field=flag, hint="give a path in it")
    if Path.cwd().is_relative_to(whole):
        raise InputError("is, or holds, the working directory", file=path, field=flag, hint="give a path in it")
    above = next(parent for parent in whole.parents if os.path.lexists(parent))
    if not above.is_dir():
        raise InputError(f"{above} is a file, not a directory", file=path, field=flag, hint=ELSEWHERE)


def _check_apart(flag: str, path: Path, other: str, place: Path, *, within: bool = False) -> None:
    """Raises InputError for paths of which one is, or holds, the other; `within` = the output may lie in the other."""
    one, two = path.resolve(), place.resolve()
    if one == two:
        problem = f"is also {other}"
    elif two.is_relative_to(one):
        problem = f"holds {place}, which is {other}"
    elif one.is_relative_to(two) and not within:
        problem = f"lies within {place}, which is {other}"
    else:
        return
    raise InputError(problem, file=path, field=flag, hint="give paths that lie beside each other")


def _named_places(settings: Mapping[str, Any]) -> Iterator[tuple[str, list[Path]]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _named_places(value)
        elif isinstance(value, str) and name in READ + GROWING:
            yield name, list(_local_paths(value, exists=name in READ))


def _local_paths(text: str, *, exists: bool) -> Iterator[Path]:
    """Yields local paths in a setting: the whole of it, or parts of a list such as `NAME=PATH,URI#SPLIT`."""
    parts = {text, *(part for piece in text.replace(";", ",").split(",") for part in _forms(piece))}
    for part in sorted(parts):
        if part and "://" not in part and (Path(part).expanduser().exists() or not exists):
            yield Path(part).expanduser()


def _forms(piece: str) -> Iterator[str]:
    value = piece.partition("=")[2] or piece
    yield from (value.strip(), value.partition("#")[0].strip())
