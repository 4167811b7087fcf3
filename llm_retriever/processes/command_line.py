"""What the command lines of this project share: how they end, how their messages begin, and the parsers within a parser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from llm_retriever.errors import EXIT_BAD_INPUT, InputError, refusal_of


def run(
    parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int], arguments: list[str] | None = None
) -> int:
    """Parses a command line, runs its command, and returns the exit code: the command's, or 2 for bad input.

    Args:
        parser: Its `prog` names the command in messages.
        command: What is done with what was parsed; returns the exit code.
        arguments: By default this process's.
    """
    options = parser.parse_args(arguments)
    return guarded(name_of(parser.prog), lambda: command(options))


def guarded(name: str, command: Callable[[], int]) -> int:
    """Runs a command, and returns its exit code; bad input is told in one line that begins with `name`, and gives 2."""
    try:
        return command()
    except (InputError, OSError) as error:
        refusal = error if isinstance(error, InputError) else refusal_of(error)
        if refusal is None:
            raise
        print(f"{name}: {refusal}", file=sys.stderr)
        return EXIT_BAD_INPUT


def name_of(prog: str) -> str:
    """What a program is called in its messages.

    >>> name_of("python -m llm_retriever.promotion.versions"), name_of("llm-retriever versions")
    ('versions', 'llm-retriever versions')
    """
    return prog.removeprefix("python -m ").rpartition(".")[2]


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Parsers of a parser's own commands, by name; none where it has none."""
    choices = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(next(choices, {}) or {})
