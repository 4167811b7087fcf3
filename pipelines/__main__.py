"""Commands around the pipelines: compile them, run them on this machine, list the presets."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from llm_retriever.errors import EXIT_BAD_INPUT, InputError

BUILD = Path("build")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0 done, 2 bad input, 1 a step failed."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.command(given))
    except InputError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    compiling = commands.add_parser("compile", help="write the YAML that Kubeflow takes")
    compiling.add_argument("--preset", help="bake this preset into the form's defaults")
    compiling.add_argument("--output", type=Path, default=BUILD / "train_retriever.yaml", help="(default: %(default)s)")
    compiling.add_argument("parameters", nargs="*", metavar="key=value", help="other defaults for the form")
    compiling.set_defaults(command=compile_command)

    running = commands.add_parser("run-local", help="run the compiled pipeline on this machine")
    running.add_argument("--preset", default="demo-cpu", help="(default: %(default)s)")
    running.add_argument(
        "--root", type=Path, default=BUILD, help="outputs, cache and checkpoints (default: %(default)s)"
    )
    running.add_argument("--no-cache", action="store_true", help="run every step anew")
    running.add_argument("parameters", nargs="*", metavar="key=value", help="what differs from the preset")
    running.set_defaults(command=run_command)

    listing = commands.add_parser("presets", help="list the presets, or show one")
    listing.add_argument("preset", nargs="?", help="show this preset's parameters")
    listing.set_defaults(command=presets_command)
    return parser


def compile_command(given: argparse.Namespace) -> int:
    """Compiles `train_retriever`."""
    from pipelines import presets
    from pipelines.compilation import compile_pipeline
    from pipelines.train_retriever import train_retriever

    overrides = presets.load(given.preset) if given.preset else {}
    overrides |= presets.parsed(train_retriever, given.parameters)
    presets.check({**presets.defaults(train_retriever), **overrides})
    print(compile_pipeline(train_retriever, given.output, overrides))
    return 0


def run_command(given: argparse.Namespace) -> int:
    """Compiles `train_retriever` with a preset, runs it on this machine, and prints results, times and the report's place."""
    from pipelines import local, presets
    from pipelines.compilation import compile_pipeline
    from pipelines.train_retriever import train_retriever

    root = given.root.absolute()
    overrides = {"run_checkpoint_uri": str(root / "checkpoints"), "promote_uri": str(root / "published")}
    overrides |= presets.load(given.preset) | presets.parsed(train_retriever, given.parameters)
    presets.check({**presets.defaults(train_retriever), **overrides})
    package = compile_pipeline(train_retriever, root / "train_retriever.local.yaml", overrides)
    run = local.run_compiled(package, {}, root, cache=not given.no_cache)
    local.print_end(run, root)
    return run.exit_code


def presets_command(given: argparse.Namespace) -> int:
    """Lists presets, or shows one as `key=value` lines."""
    from pipelines import presets

    if given.preset:
        for name, value in presets.load(given.preset).items():
            print(f"{name}={str(value).lower() if isinstance(value, bool) else value}")
    else:
        for name in presets.names():
            print(f"{name}: {presets.description(name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
