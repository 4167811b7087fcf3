"""Reads and writes runs in the TREC format: six columns ``qid Q0 docid rank score tag``."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Sequence
from math import isfinite
from operator import itemgetter
from pathlib import Path

import numpy as np

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.metrics.fusion import Ranked

RUNS_MANIFEST = "runs.json"
COLUMNS = 6

Run = dict[str, dict[str, float]]


def write_run(path: str | Path, rows: Iterable[tuple[str, Sequence[tuple[str, float]]]], tag: str) -> None:
    """Writes a run atomically.

    Scores keep nine significant digits, which tell any two float32 numbers apart: rounding makes no false ties.

    Args:
        path: The file.
        rows: Query id and its ``(passage id, score)`` pairs, best first; ranks are counted from 1.
        tag: Name of the system, without white space.

    Raises:
        InputError: An id holds white space, which the format cannot carry, or a score is not finite.
    """
    with files.atomic_file(path) as draft, draft.open("w", encoding="utf-8", newline="\n") as file:
        for query, ranking in rows:
            _check_ids([query], "query id", path)
            _check_ids([passage for passage, _ in ranking], "passage id", path)
            if not all(isfinite(score) for _, score in ranking):
                raise InputError(f"a passage of query {query!r} has a score that is not finite", file=path)
            file.writelines(
                f"{query} Q0 {passage} {rank} {score:.9g} {tag}\n"
                for rank, (passage, score) in enumerate(ranking, start=1)
            )


def _check_ids(ids: list[str], field: str, path: str | Path) -> None:
    if " ".join(ids).split() == ids:
        return
    wrong = next(value for value in ids if value.split() != [value])
    raise InputError(
        f"{wrong!r} is empty or holds white space, which a TREC run cannot carry",
        file=path,
        field=field,
        hint="use ids without white space in the corpus",
    )


def read_run(path: str | Path) -> Run:
    """Reads a run: score by passage id, by query id; an empty file is the run of a system that found nothing.

    A byte-order mark at its beginning is dropped.

    Raises:
        InputError: The file is missing, a line does not have six columns, a score is not a finite number,
            or a passage stands twice under one query.
    """
    path = Path(path)
    run: Run = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                try:
                    query, _, passage, _, text, _ = line.split()
                    score = float(text)
                except ValueError:
                    _raise_malformed(line, path, number)
                    continue
                ranking = run.setdefault(query, {})
                if passage in ranking or "_" in text or not isfinite(score):  # Python reads 1_0 as 10
                    _raise_malformed(line, path, number)
                ranking[passage] = score
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such run file", file=path, hint="give the output of an earlier step") from None
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 ({error.reason})", file=path, hint="write the run anew") from None
    return run


def line_of(path: str | Path, query: str, passage: str) -> int | None:
    """Number of the line of a run on which a passage stands under a query; None where the file is not on this machine."""
    with contextlib.suppress(OSError), Path(path).open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            columns = line.split()
            if columns[:1] == [query] and columns[2:3] == [passage]:
                return number
    return None


def read_ranked(path: Path) -> dict[str, Ranked]:
    """Reads a run that `write_run` wrote, by query id, in a tenth of the memory that `read_run` takes."""
    with path.open("rb") as file:
        rows = (line.split() for line in file)
        return {query.decode(): _ranked(list(part)) for query, part in itertools.groupby(rows, key=itemgetter(0))}


def _ranked(rows: list[list[bytes]]) -> Ranked:
    return Ranked(np.array([row[2] for row in rows], np.bytes_), np.array([row[4] for row in rows], np.float32))


def _raise_malformed(line: str, path: Path, number: int) -> None:
    """Raises the error of a malformed line; an empty one is skipped."""
    columns = line.split()
    if not columns:
        return
    if len(columns) != COLUMNS:
        problem, field, hint = (
            f"{len(columns)} columns instead of {COLUMNS}",
            None,
            "write: qid Q0 docid rank score tag",
        )
    elif not _is_finite(columns[4]):
        problem, field, hint = f"{columns[4]!r} is not a finite number", "score", "write a number"
    else:
        problem, field = f"passage {columns[2]!r} stands twice under query {columns[0]!r}", None
        hint = "remove one line"
    raise InputError(problem, file=path, line=number, field=field, hint=hint)


def _is_finite(text: str) -> bool:
    try:
        return "_" not in text and isfinite(float(text))
    except ValueError:
        return False
