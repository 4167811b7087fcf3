"""`llm-retriever`: the commands of this project under one name; `python -m llm_retriever` is the same.

This module knows the commands' names and where each is; what they take, and what they do, stands there. A module is loaded
when its command is given, so that `--help` is there at once. The library does not depend on `pipelines`, which is found by
name: a checkout has it, and `components`, beside this package; a wheel carries both within it, where they are in nobody's way.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_retriever import __version__
from llm_retriever.errors import EXIT_BAD_INPUT
from llm_retriever.processes import pipes
from llm_retriever.processes.command_line import subparsers

PROG = "llm-retriever"
ABOUT = "Turns a corpus into an evaluated, published dense retriever, on this machine or on Kubeflow."
PIPELINES = "pipelines.__main__"
PACKAGE = Path(__file__).parent
WITHIN = PACKAGE / "_kubeflow"
"""Where a wheel has `components` and `pipelines`."""
LASTING = (["run"], ["compare"])
"""Commands whose work goes on when nobody reads any more what they print."""


@dataclass(frozen=True)
class Command:
    """A command: the module whose `parser` and `main` it is, one line of help, and the extra that brings what it imports."""

    module: str
    help: str
    extra: str = "all"

    def main(self, name: str, arguments: list[str]) -> int:
        """Runs the command and returns its exit code."""
        module = self._loaded()
        if self.module == PIPELINES:
            return int(module.main([name, *arguments], PROG))
        return int(module.main(arguments, f"{PROG} {name}"))

    def parser(self, name: str) -> argparse.ArgumentParser:
        """What parses the words after the command's name."""
        module = self._loaded()
        if self.module == PIPELINES:
            return subparsers(module.parser(PROG))[name]
        found: argparse.ArgumentParser = module.parser(f"{PROG} {name}")
        return found

    def _loaded(self) -> Any:
        # First, because a folder called `pipelines` is what many who call this have in theirs.
        home = str(WITHIN if WITHIN.is_dir() else PACKAGE.parent)
        if sys.path[:1] != [home]:
            sys.path.insert(0, home)
        return importlib.import_module(self.module)


GROUPS = {
    "on this machine": {
        "run": Command(PIPELINES, "run the whole pipeline: from a corpus to an evaluated retriever"),
        "compare": Command(PIPELINES, "run several methods on one corpus, and compare them in one table"),
    },
    "on Kubeflow": {
        "compile": Command(PIPELINES, "write the YAML of a pipeline", "pipelines"),
        "submit": Command(PIPELINES, "start a run", "pipelines"),
        "schedule": Command(PIPELINES, "create, replace, list or remove recurring runs", "pipelines"),
        "status": Command(PIPELINES, "list runs, show one, or follow it to its end", "pipelines"),
    },
    "here or there": {
        "estimate": Command(PIPELINES, "what a run would take: GPU-hours, memory, disk, S3", "pipelines"),
        "rerun": Command(PIPELINES, "run one step again, on the artifacts of an earlier run"),
    },
    "what comes with the project": {
        "presets": Command(PIPELINES, "list the recipes, or show one", "pipelines"),
        "variants": Command(PIPELINES, "list what can be compared, or show one list", "pipelines"),
        "encoders": Command("llm_retriever.encoders.__main__", "list published encoders, or convert one's weights"),
    },
    "the result": {
        "search": Command("llm_retriever.indexing.search", "search an index or a published version"),
        "export": Command("llm_retriever.exporting.__main__", "write a retriever for programs without this library"),
        "versions": Command("llm_retriever.promotion.versions", "list, roll back and clean up published versions"),
    },
    "this shell": {
        "completion": Command(
            "llm_retriever.completion", "print a script that completes commands: bash, zsh", "pipelines"
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def program() -> int:
    """What the console script calls: runs this process's command line and returns the exit code."""
    return main() if sys.argv[1:2] in LASTING else pipes.run(main)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; 2 where what it needs is not installed.

    Args:
        arguments: The command's name and what follows it; by default this process's.
    """
    words = sys.argv[1:] if arguments is None else arguments
    name = parser().parse_args(words[:1] or ["--help"]).command
    command = COMMANDS[name]
    try:
        return command.main(name, words[1:])
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith(("llm_retriever.", "components.", "pipelines.")):
            raise
        missing = error.name.partition(".")[0]
        hint = (
            f"install this project with the extra {command.extra!r}: pip install '.[{command.extra}]' in its repository"
        )
        print(f"{PROG} {name}: {missing} is not installed; {hint}", file=sys.stderr)
        return EXIT_BAD_INPUT


def parser() -> argparse.ArgumentParser:
    """The command line up to the command's name."""
    found = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} COMMAND …",
        description=f"{ABOUT}\n\n{_listed()}",
        epilog=f"{PROG} COMMAND --help tells what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--version", action="version", version=f"{PROG} {__version__}", help="show the version and exit")
    found.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return found


def _listed() -> str:
    """The commands by group, one line each."""
    width = max(map(len, COMMANDS))
    blocks = (
        "\n".join([f"{title}:", *(f"  {name:<{width}}  {command.help}" for name, command in group.items())])
        for title, group in GROUPS.items()
    )
    return "\n\n".join(blocks)
