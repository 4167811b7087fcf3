"""Commands on the published versions of a retriever, and on what runs have left behind.

llm-retriever versions list s3://bucket/published
llm-retriever versions rollback s3://bucket/published
llm-retriever versions prune s3://bucket/published --keep 5
llm-retriever versions judged s3://bucket/published
llm-retriever versions forget s3://bucket/published
llm-retriever versions sweep-shards s3://bucket/shards --published s3://bucket/published
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from llm_retriever.processes import command_line, pipes
from llm_retriever.promotion.cleanup import clear_abandoned, sweep
from llm_retriever.stores.records import Records
from llm_retriever.stores.registry import Registry

PROGRAM = "python -m llm_retriever.promotion.versions"
DAYS = 7.0
_DAY = 86_400


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    return command_line.run(parser(prog), _run, arguments)


def _run(options: argparse.Namespace) -> int:
    for line in options.command(options):
        print(line)
    return 0


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], list[str]], help_text: str, uri: str = ""
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help_text)
        one.add_argument("uri", help=uri or "promote_uri: a directory or s3:// prefix")
        one.set_defaults(command=run)
        return one

    command("list", _list, "all versions: since when, why; the one in production marked")
    rolling = command("rollback", _roll_back, "put the newest version of the model before this one into production")
    _add_target(rolling)
    pruning = command("prune", _prune, "delete old versions; the one in production and what a rollback goes to stay")
    keep_help = "newest versions (default: %(default)s)"
    pruning.add_argument("--keep", type=_positive, default=5, metavar="N", help=keep_help)
    command("judged", _judged, "the record of what the latest retraining judged, and how many recipes have one")
    forgetting = command(
        "forget", _forget, "remove the records: the next retraining trains although nothing has changed"
    )
    forgetting.add_argument("--recipe", default="", metavar="R", help="only the record of this one")
    _add_sweeping(command("sweep-shards", _sweep, "show shards of failed and superseded runs", "index_shards_uri"))
    return parser


def _add_target(rolling: argparse.ArgumentParser) -> None:
    target = rolling.add_mutually_exclusive_group()
    target.add_argument("--to", default="", metavar="VERSION", help="this version")
    target.add_argument(
        "--previous",
        action="store_true",
        help="what was in production just before: the same model with its older index, or what a rollback took out",
    )


def _add_sweeping(sweeping: argparse.ArgumentParser) -> None:
    sweeping.add_argument(
        "--published",
        action="append",
        required=True,
        metavar="URI",
        help="promote_uri: shards of these versions stay (may be given several times)",
    )
    sweeping.add_argument(
        "--older-than-days",
        type=_not_negative,
        default=DAYS,
        metavar="N",
        help="leave what was written to since; longer than a run takes (default: %(default)s)",
    )
    sweeping.add_argument("--delete", action="store_true", help="delete them; without it nothing is changed")


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def _not_negative(text: str) -> float:
    if not float(text) >= 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return float(text)


def _list(options: argparse.Namespace) -> list[str]:
    registry = Registry(options.uri)
    alias = registry.alias()
    current, earlier, current_alias = registry.production(alias), registry.earlier_model(alias), alias.content
    lines = []
    for version in registry.versions():
        is_current = version == current
        since = f"in production since {current_alias.get('since')}" if is_current else f"published {version.published}"
        since += ", the one before" if version.name == current_alias.get("previous") else ""
        since += ", a rollback goes here" if version == earlier else ""
        kind = "refreshed" if version.refreshed_from else "trained"
        why = "; ".join(filter(None, (version.reason, str(current_alias.get("reason", "")) if is_current else "")))
        lines.append(f"{'*' if is_current else ' '} {version.name}  {kind:<9}  {since}: {why or 'no reason is known'}")
    return lines or ["no version is published there"]


def _roll_back(options: argparse.Namespace) -> list[str]:
    return [f"in production: {Registry(options.uri).roll_back(options.to, previous=options.previous).name}"]


def _prune(options: argparse.Namespace) -> list[str]:
    registry = Registry(options.uri)
    lines = [f"deleted {version.name}" for version in registry.prune(options.keep)]
    lines += [f"deleted {name}, which was never completed" for name in clear_abandoned(registry, DAYS)]
    return lines or ["nothing to delete"]


def _judged(options: argparse.Namespace) -> list[str]:
    records = Records(options.uri)
    known = records.recipes()
    if not known:
        return ["nothing was judged yet"]
    record = records.latest(known[-1])
    lines = [f"{name}: {record.get(name)}" for name in ("when", "fingerprint", "promoted", "version")]
    lines += [f"- {reason}" for reason in record.get("reasons", [])]
    return [f"the latest of {len(known)}:", *lines]


def _forget(options: argparse.Namespace) -> list[str]:
    gone = Records(options.uri).forget(options.recipe)
    return [f"forgotten {recipe}; the next retraining by it trains" for recipe in gone] or ["nothing to forget"]


def _sweep(options: argparse.Namespace) -> list[str]:
    now = time.time()
    folders = sweep(options.uri, options.published, days=options.older_than_days, delete=options.delete, now=now)
    lines = []
    for folder in folders:
        age = f"{folder.size / 1e9:.3f} GB, {(now - folder.modified) / _DAY:.1f} days old"
        verb = "keeps" if folder.spared else "deleted" if options.delete else "would delete"
        lines.append(f"{verb} {folder.name}  {age}{f': {folder.spared}' if folder.spared else ''}")
    gone = [folder for folder in folders if not folder.spared]
    total = f"{len(gone)} of {len(folders)} folders, {sum(folder.size for folder in gone) / 1e9:.3f} GB"
    return [*lines, f"deleted: {total}" if options.delete else f"would delete: {total}; --delete does it"]


if __name__ == "__main__":
    raise SystemExit(pipes.run(main))
