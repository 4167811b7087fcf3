"""Commands on the published versions of a retriever.

python -m llm_retriever.versions list s3://bucket/published
python -m llm_retriever.versions rollback s3://bucket/published
python -m llm_retriever.versions prune s3://bucket/published --keep 5
"""

from __future__ import annotations

import argparse
import sys

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from llm_retriever.registry import Registry


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    given = _parser().parse_args(arguments)
    try:
        for line in given.command(Registry(given.uri), given):
            print(line)
    except InputError as error:
        print(f"versions: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llm_retriever.versions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="all versions, the one in production marked")
    listing.set_defaults(command=_list)
    rolling = commands.add_parser("rollback", help="put the version before the present one into production again")
    rolling.add_argument("--to", default="", metavar="VERSION", help="another version")
    rolling.set_defaults(command=_roll_back)
    pruning = commands.add_parser("prune", help="delete old versions; the one in production and the one before it stay")
    pruning.add_argument(
        "--keep", type=_positive, default=5, metavar="N", help="newest versions (default: %(default)s)"
    )
    pruning.set_defaults(command=_prune)
    for command in (listing, rolling, pruning):
        command.add_argument("uri", help="promote_uri: a directory or s3:// prefix")
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _list(registry: Registry, given: argparse.Namespace) -> list[str]:
    current = registry.production()
    return [f"{'*' if version == current else ' '} {version.name}" for version in registry.versions()]


def _roll_back(registry: Registry, given: argparse.Namespace) -> list[str]:
    return [f"in production: {registry.roll_back(given.to).name}"]


def _prune(registry: Registry, given: argparse.Namespace) -> list[str]:
    return [f"deleted {version.name}" for version in registry.prune(given.keep)] or ["nothing to delete"]


if __name__ == "__main__":
    raise SystemExit(main())
