"""Runs in the TREC format: what a system returned for every query, in six columns ``qid Q0 docid rank score tag``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_retriever import files
from llm_retriever.errors import InputError

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
            _check_id(query, "query id", path)
            lines = []
            for rank, (passage, score) in enumerate(ranking, start=1):
                _check_id(passage, "passage id", path)
                if not math.isfinite(score):
                    raise InputError(f"query {query!r}, passage {passage!r} has score {score}", file=path)
                lines.append(f"{query} Q0 {passage} {rank} {score:.9g} {tag}\n")
            file.write("".join(lines))


def _check_id(value: str, field: str, path: str | Path) -> None:
    if len(value.split()) != 1 or len(value.split()[0]) != len(value):
        raise InputError(
            f"{value!r} is empty or holds white space, which a TREC run cannot carry",
            file=path,
            field=field,
            mend="use ids without white space in the corpus",
        )


def read_run(path: str | Path) -> Run:
    """Reads a run: score by passage id, by query id.

    Raises:
        InputError: The file is missing or empty, a line does not have six columns, a score is not a finite number,
            or a passage stands twice under one query.
    """
    path = Path(path)
    run: Run = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                _add_line(run, line, path, number)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such run file", file=path, mend="give the output of an earlier step") from None
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 ({error.reason})", file=path, mend="write the run anew") from None
    if not run:
        raise InputError("the run is empty", file=path, mend="make it anew with the step that wrote it")
    return run


def _add_line(run: Run, line: str, path: Path, number: int) -> None:
    columns = line.split()
    if len(columns) != COLUMNS:
        if not columns:
            return
        raise InputError(
            f"{len(columns)} columns instead of {COLUMNS}",
            file=path,
            line=number,
            mend="write: qid Q0 docid rank score tag",
        )
    query, _, passage, _, text, _ = columns
    score = _number(text, path, number)
    ranking = run.setdefault(query, {})
    before = len(ranking)
    ranking[sys.intern(passage)] = score
    if len(ranking) == before:
        raise InputError(
            f"passage {passage!r} stands twice under query {query!r}", file=path, line=number, mend="remove one line"
        )


def _number(text: str, path: Path, line: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{text!r} is not a finite number", file=path, line=line, field="score", mend="write a number")
    return score
