"""Commands around the pipelines: compile them, run them here or on a cluster, rerun a step, list presets and variants."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from llm_retriever.errors import EXIT_BAD_INPUT, InputError
from pipelines import remote

BUILD = Path("build")
TRAINING, COMPARISON, RERUN = "train_retriever", "compare_methods", "rerun_"
REPORTS = {
    TRAINING: {"summary": "summary.md", "report": "report.html"},
    COMPARISON: {"summary": "comparison.md", "report": "comparison.html"},
}


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns the exit code: 0 done, 2 bad input, 1 a step failed."""
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    # argparse ends a list of words at the first flag; what follows a flag's value is the list's too.
    if rest and (not hasattr(given, "parameters") or any(text.startswith("-") for text in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        given.parameters += rest
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
    compiling.add_argument("--output", type=Path, help="(default: build/PIPELINE.yaml)")
    _add_pipeline(compiling, "other defaults for the form")
    compiling.set_defaults(command=compile_command)

    running = commands.add_parser("run-local", help="run the compiled pipeline on this machine")
    running.add_argument("--preset", default="demo-cpu", help="(default: %(default)s)")
    running.add_argument(
        "--root", type=Path, default=BUILD, help="outputs, cache and checkpoints (default: %(default)s)"
    )
    running.add_argument("--no-cache", action="store_true", help="run every step anew")
    running.add_argument(
        "--in-images",
        action="store_true",
        help="run the steps in their images, restricted as on the cluster and without network; they see ROOT/runs alone",
    )
    _add_pipeline(running, "what differs from the preset")
    running.set_defaults(command=run_command)

    remote.add_commands(commands, _add_pipeline, _chosen)

    estimating = commands.add_parser(
        "estimate", help="what a run would take: GPU-hours, memory, disk, S3, step by step"
    )
    estimating.add_argument("--preset", help="a published recipe")
    estimating.add_argument("--passages", type=int, required=True, metavar="N", help="of the corpus")
    estimating.add_argument("--queries", type=int, required=True, metavar="M", help="for training")
    estimating.add_argument(
        "--gpu", default="a100-80", help="a100-40, a100-80, l40s, h100, h200 (default: %(default)s)"
    )
    estimating.add_argument("parameters", nargs="*", metavar="key=value", help="what differs from the preset")
    estimating.set_defaults(command=estimate_command, variants=None)

    listing = commands.add_parser("presets", help="list the presets, or show one")
    listing.add_argument("preset", nargs="?", help="show this preset's parameters")
    listing.set_defaults(command=presets_command)

    showing = commands.add_parser("variants", help="list the files of variants, or show what one compares")
    showing.add_argument("file", nargs="?", help="show the variants of this file")
    showing.set_defaults(command=variants_command)
    return parser


def _add_pipeline(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument("--variants", metavar="NAME|FILE", help=f"{COMPARISON}: what to compare (default: methods)")
    parser.add_argument(
        "parameters",
        nargs="*",
        metavar="[PIPELINE] [key=value]",
        help=f"the pipeline, {TRAINING} (default), {COMPARISON} or {RERUN}STEP, and {meaning}",
    )


def _chosen(given: argparse.Namespace, own: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """The pipeline that the command line names, and the defaults of its form.

    Args:
        given: The command line.
        own: Defaults that preset and command line may change; those of another pipeline are left out.

    Raises:
        InputError: A name or a value does not fit.
    """
    from pipelines import presets, variants
    from pipelines.train_retriever import train_retriever

    parameters, pipeline = list(given.parameters), train_retriever
    named = parameters and (parameters[0] in REPORTS or parameters[0].startswith(RERUN))
    name = parameters.pop(0) if named else TRAINING
    chosen: tuple[variants.Variant, ...] = ()
    if name.startswith(RERUN):
        from pipelines.rerun import rerun_of

        pipeline = rerun_of(name.removeprefix(RERUN))
    if name == COMPARISON:
        from pipelines.comparison import comparison_of

        chosen = variants.load(given.variants or variants.DEFAULT, train_retriever).variants
        pipeline = comparison_of(chosen)
    elif given.variants:
        raise InputError(f"{name} has no variants", field="--variants", mend=f"name the pipeline {COMPARISON}")
    known = presets.defaults(pipeline)
    overrides = own | (presets.load(given.preset) if given.preset else {})
    overrides = {key: value for key, value in overrides.items() if key in known}
    overrides |= presets.parsed(pipeline, parameters)
    presets.check({**known, **overrides})
    if chosen:
        variants.check_reference(chosen, overrides.get("compare_reference", ""))
    return name, pipeline, overrides


def compile_command(given: argparse.Namespace) -> int:
    """Compiles a pipeline."""
    from pipelines.compilation import compile_pipeline

    name, pipeline, overrides = _chosen(given, {})
    print(compile_pipeline(pipeline, given.output or BUILD / f"{name}.yaml", overrides))
    return 0


def run_command(given: argparse.Namespace) -> int:
    """Compiles a pipeline with a preset, runs it on this machine, and prints results, times and the report's place."""
    from pipelines import local
    from pipelines.compilation import compile_pipeline

    root = given.root.absolute()
    shared = root / "runs" if given.in_images else root
    own = {"run_checkpoint_uri": str(shared / "checkpoints"), "promote_uri": str(shared / "published")}
    name, pipeline, overrides = _chosen(given, own)
    if name not in REPORTS:
        raise InputError(
            "a step is rerun by its own command", field="PIPELINE", mend="python -m pipelines rerun --help"
        )
    package = compile_pipeline(pipeline, root / f"{name}.local.yaml", overrides)
    run = local.run_compiled(package, {}, root, cache=not given.no_cache, in_images=given.in_images)
    local.print_end(run, root, REPORTS[name])
    return run.exit_code


def estimate_command(given: argparse.Namespace) -> int:
    """Prints the cost of a run before anything is spent."""
    from pipelines import estimate, presets

    if given.gpu not in estimate.GPUS:
        raise InputError(f"{given.gpu!r} is not known", field="--gpu", mend=f"use one of {', '.join(estimate.GPUS)}")
    _, pipeline, overrides = _chosen(given, {})
    gpu = estimate.GPUS[given.gpu]
    costs = estimate.estimate({**presets.defaults(pipeline), **overrides}, given.passages, given.queries, gpu)
    print(estimate.as_table(costs, gpu))
    print(
        f"\nEstimated, not measured: {estimate.UTILISATION:.0%} of the GPU's matrix rate, texts at their full lengths."
    )
    return 0


def presets_command(given: argparse.Namespace) -> int:
    """Lists presets, or shows one as `key=value` lines."""
    from pipelines import presets

    if given.preset:
        _print_parameters(presets.load(given.preset))
    else:
        for name in presets.names():
            print(f"{name}: {presets.description(name)}")
    return 0


def variants_command(given: argparse.Namespace) -> int:
    """Lists the files of variants, or shows one: every variant and the parameters that it sets."""
    from pipelines import variants
    from pipelines.train_retriever import train_retriever

    if given.file:
        for variant in variants.load(given.file, train_retriever).variants:
            print(f"{variant.name}: {variant.description}")
            _print_parameters(variant.parameters, "  ")
    else:
        for name in variants.names():
            print(f"{name}: {variants.load(name, train_retriever).description}")
    return 0


def _print_parameters(parameters: dict[str, Any], indent: str = "") -> None:
    for name, value in parameters.items():
        print(f"{indent}{name}={str(value).lower() if isinstance(value, bool) else value}")


if __name__ == "__main__":
    sys.exit(main())
