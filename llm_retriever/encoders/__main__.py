"""Prints the table of published encoders, and converts pickled weights.

llm-retriever encoders list
llm-retriever encoders convert DIR OUT
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_retriever.encoders.rows import Row, Wiring
from llm_retriever.encoders.table import TABLE
from llm_retriever.processes import command_line, pipes

PROGRAM = "python -m llm_retriever.encoders"
_HEADINGS = ("name", "pooling", "normalised", "query", "passage", "models")
_FOOT = "query, passage: tokens. *: no commit is pinned here; write NAME@COMMIT to download, or NAME=DIRECTORY."


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 bad input."""
    return command_line.run(parser(prog), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    if options.command == "list":
        print(table())
        return 0
    from llm_retriever.encoders.convert import convert

    converted = convert(options.directory, options.output)
    print(f"{options.output}: {', '.join(converted)} as safetensors")
    return 0


def table() -> str:
    """Formats the table of published encoders, one line a row."""
    rows = [_HEADINGS, *(_line(row) for row in TABLE.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADINGS) - 1)]
    lines = ["  ".join([*(f"{row[i]:<{w}}" for i, w in enumerate(widths)), row[-1]]) for row in rows]
    return "\n".join([*lines, "", _FOOT])


def _line(row: Row) -> tuple[str, ...]:
    wiring = row.wiring
    pooling = wiring.pooling if isinstance(wiring, Wiring) else _LLM_POOLING.get(wiring.pooling, wiring.pooling)
    models = " + ".join(part.id + ("" if part.revision else "*") for part in row.parts)
    lengths = str(wiring.query_length), str(wiring.passage_length)
    return (row.name, pooling, "yes" if wiring.normalise else "no", *lengths, models)


_LLM_POOLING = {"embedding": "embedding tokens", "text": "mean over text"}


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """Builds the command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Published dense encoders.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="Print the table of published encoders.")
    conversion = commands.add_parser("convert", help="Copy a model with its pickled weights (*.bin) as safetensors.")
    conversion.add_argument("directory", type=Path, metavar="DIR", help="Directory of the model or adapter.")
    conversion.add_argument("output", type=Path, metavar="OUT", help="Becomes the copy; must be empty, or not there.")
    return parser


if __name__ == "__main__":
    sys.exit(pipes.run(main))
