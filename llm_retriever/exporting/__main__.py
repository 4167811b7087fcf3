"""The command that exports a retriever.

llm-retriever export --retriever DIR --format sentence-transformers --output DIR
"""

from __future__ import annotations

import argparse
from typing import get_args

from llm_retriever.exporting.export import Format, export
from llm_retriever.processes import command_line, pipes

PROGRAM = "python -m llm_retriever.exporting"


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 bad input."""
    return command_line.run(parser(prog), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    export(options.retriever, options.output, options.format)
    print(f"{options.output}: {options.format} export of {options.retriever}, checked: its vectors are the retriever's")
    return 0


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description="Writes a retriever for programs without this library.")
    parser.add_argument(
        "--retriever", required=True, metavar="DIR", help="Output of tune_retriever: directory or s3://."
    )
    parser.add_argument("--format", required=True, choices=get_args(Format), help="What is to read it.")
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="Becomes the export; an earlier one is replaced, anything else is refused.",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(pipes.run(main))
