"""Commands around the pipelines: compile them, run them here or on a cluster, rerun a step, list presets and variants."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.processes import pipes
from llm_retriever.processes.command_line import guarded, name_of, subparsers
from pipelines import remote
from pipelines.choice import COMPARISON, RERUN, RETRAINING, TRAINING, Choice, check_room, choose

PROGRAM = "python -m pipelines"
LASTING = (["run"], ["run-local"], ["compare"])
BUILD = Path("build")
OF_A_TRAINING = {"summary": "summary.md", "decision": "decision.md", "report": "report.html"}
REPORTS = {
    TRAINING: OF_A_TRAINING,
    RETRAINING: OF_A_TRAINING,
    COMPARISON: {"summary": "comparison.md", "report": "comparison.html"},
}


def main(arguments: list[str] | None = None, prog: str = PROGRAM) -> int:
    """Runs a command and returns the exit code: 0 done, 2 bad input, 1 a step failed.

    Args:
        arguments: The command's name and what follows it; by default this process's.
        prog: What was typed before them, for help and messages.
    """
    whole = parser(prog)
    options, rest = whole.parse_known_args(arguments)
    # argparse ends a list of words at the first flag; what follows a flag's value is the list's too.
    if rest and (not hasattr(options, "parameters") or any(text.startswith("-") for text in rest)):
        subparsers(whole)[options.verb].error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.parameters += rest
    name = name_of(prog) if prog == PROGRAM else f"{prog} {options.verb}"
    return guarded(name, lambda: int(options.command(options)))


def parser(prog: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line, one subparser a command."""
    whole = argparse.ArgumentParser(prog=prog, description=__doc__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND", dest="verb")
    for add in (_add_compile, _add_run, _add_compare):
        add(commands)
    remote.add_commands(commands, _add_pipeline, _chosen)
    for add in (_add_estimate, _add_presets, _add_variants):
        add(commands)
    return whole


def _add_compile(commands: Any) -> None:
    compiling = commands.add_parser("compile", help="write the YAML that Kubeflow takes")
    compiling.add_argument(
        "--preset", metavar="NAME|FILE", help="bake it, or a .toml of one's own, into the form's defaults and the pods"
    )
    compiling.add_argument("--output", type=Path, help="(default: build/PIPELINE.yaml)")
    compiling.add_argument(
        "--kubernetes", action="store_true", help="write objects Pipeline and PipelineVersion for kubectl apply"
    )
    compiling.add_argument("--namespace", default="", metavar="NS", help="of these objects")
    compiling.add_argument(
        "--version-name", default="", metavar="V", help="of the PipelineVersion (default: a digest of the pipeline)"
    )
    _add_pipeline(compiling, "other defaults for the form")
    compiling.set_defaults(command=compile_command)


def _add_run(commands: Any) -> None:
    running = commands.add_parser("run", aliases=["run-local"], help="run the compiled pipeline on this machine")
    _add_local(running)
    _add_pipeline(running, "what differs from the preset")


def _add_compare(commands: Any) -> None:
    comparing = commands.add_parser("compare", help=f"the same as run {COMPARISON}")
    _add_local(comparing)
    _add_compared(comparing)
    comparing.add_argument("parameters", nargs="*", metavar="key=value", help="what differs from the preset")
    comparing.set_defaults(pipeline=COMPARISON)


def _add_local(running: argparse.ArgumentParser) -> None:
    running.add_argument("--preset", metavar="NAME|FILE", help="(default: demo-cpu; of a comparison demo-compare)")
    running.add_argument(
        "--root", type=Path, default=BUILD, help="outputs, cache and checkpoints (default: %(default)s)"
    )
    running.add_argument("--no-cache", action="store_true", help="run every step anew")
    running.add_argument(
        "--in-images",
        action="store_true",
        help="run the steps in their images, restricted as on the cluster; they see ROOT/runs alone",
    )
    running.add_argument(
        "--network",
        default="none",
        metavar="NAME",
        help="with --in-images: none (default), host or container:NAME; where there is one, steps get this shell's S3 settings",
    )
    running.set_defaults(command=run_command)


def _add_estimate(commands: Any) -> None:
    estimating = commands.add_parser(
        "estimate", help="what a run would take: GPU-hours, memory, disk, S3, step by step"
    )
    estimating.add_argument("--preset", help="a published recipe")
    estimating.add_argument("--passages", type=int, required=True, metavar="N", help="of the corpus")
    estimating.add_argument("--queries", type=int, required=True, metavar="M", help="for training")
    estimating.add_argument("--evaluated", type=int, default=500, metavar="K", help="queries to evaluate (%(default)s)")
    for flag in ("--passage-tokens", "--query-tokens"):
        estimating.add_argument(flag, type=float, default=0.0, metavar="T", help="their mean, prompt included")
    estimating.add_argument(
        "--gpu", default="a100-80", help="a100-40, a100-80, l40s, h100, h200 (default: %(default)s)"
    )
    _add_pipeline(estimating, "what differs from the preset")
    estimating.set_defaults(command=estimate_command)


def _add_presets(commands: Any) -> None:
    listing = commands.add_parser("presets", help="list the presets, or show one")
    listing.add_argument("preset", nargs="?", help="show this preset's parameters")
    listing.set_defaults(command=presets_command)


def _add_variants(commands: Any) -> None:
    showing = commands.add_parser("variants", help="list the files of variants, or show what one compares")
    showing.add_argument("file", nargs="?", help="show the variants of this file")
    showing.set_defaults(command=variants_command)


def _add_pipeline(parser: argparse.ArgumentParser, meaning: str, default: str = TRAINING) -> None:
    _add_compared(parser)
    parser.add_argument(
        "parameters",
        nargs="*",
        metavar="[PIPELINE] [key=value]",
        help=f"the pipeline, {TRAINING}, {RETRAINING}, {COMPARISON} or {RERUN}STEP (default: {default}), and {meaning}",
    )
    parser.set_defaults(pipeline=default)


def _add_compared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--variants",
        metavar="NAME|FILE",
        help=f"{COMPARISON}: what to compare (default: methods; where run or compare take the demo, demo-methods)",
    )


def _chosen(given: argparse.Namespace, own: dict[str, Any] | None = None, *, complete: bool = True) -> Choice:
    """The pipeline that the command line names, and the run's parameters."""
    options = {"preset": given.preset, "file": given.variants, "default": given.pipeline, "complete": complete}
    return choose(given.parameters, own=own, **options)


def compile_command(options: argparse.Namespace) -> int:
    """Compiles a pipeline."""
    from pipelines import compilation

    if bool(options.namespace) != options.kubernetes or (options.version_name and not options.kubernetes):
        hint = "give --kubernetes and --namespace NS together"
        raise InputError("objects of Kubernetes lie in a namespace", field="--kubernetes", hint=hint)
    choice = _chosen(options, complete=False)
    check_room(choice)
    target = options.output or BUILD / f"{choice.name}.yaml"
    if options.kubernetes:
        names = {"namespace": options.namespace, "version": options.version_name}
        print(compilation.compile_objects(choice.pipeline, target, choice.told, **names))
    else:
        print(compilation.compile_pipeline(choice.pipeline, target, choice.told))
    return 0


def run_command(options: argparse.Namespace) -> int:
    """Compiles a pipeline with a preset, runs it on this machine, and prints results, times and the report's place."""
    from pipelines import demo, local
    from pipelines.compilation import compile_pipeline

    if options.preset is None:
        compared = COMPARISON in [options.pipeline, *options.parameters[:1]]
        options.preset, why = demo.preset(compared=compared)
        options.variants = options.variants or (demo.variants(options.parameters) if compared else None)
        print(why)
    root = options.root.absolute()
    shared = root / "runs" if options.in_images else root
    own = {"run_checkpoint_uri": str(shared / "checkpoints"), "promote_uri": str(shared / "published")}
    choice = _chosen(options, own)
    if choice.name not in REPORTS:
        hint = "llm-retriever rerun --help"
        raise InputError("a step is rerun by its own command", field="PIPELINE", hint=hint)
    package = compile_pipeline(choice.pipeline, root / f"{choice.name}.local.yaml", choice.told)
    run = local.run_compiled(
        package, {}, root, cache=not options.no_cache, in_images=options.in_images, network=options.network
    )
    local.print_end(run, root, REPORTS[choice.name])
    return run.exit_code


def estimate_command(options: argparse.Namespace) -> int:
    """Prints the cost of a run before anything is spent."""
    from pipelines import estimate

    if options.gpu not in estimate.GPUS:
        raise InputError(f"{options.gpu!r} is not known", field="--gpu", hint=f"use one of {', '.join(estimate.GPUS)}")
    choice = _chosen(options, {"promote_uri": "published"}, complete=False)
    if choice.name not in REPORTS:
        raise InputError("a step is not estimated alone", field="PIPELINE", hint=f"use one of {', '.join(REPORTS)}")
    lengths = {"passage_tokens": options.passage_tokens, "query_tokens": options.query_tokens}
    work, gpu = (
        estimate.Workload(options.passages, options.queries, options.evaluated, **lengths),
        estimate.GPUS[options.gpu],
    )
    if choice.name == COMPARISON:
        costs = estimate.estimate_comparison(choice.flat, choice.variants, work, gpu)
    else:
        costs = estimate.estimate(choice.flat, work, gpu)
    print(estimate.as_table(costs, gpu))
    texts = "texts at their mean lengths" if options.passage_tokens else "texts at their full lengths"
    print(f"\nEstimated, not measured: {estimate.UTILISATION:.0%} of the GPU's matrix rate, {texts}.")
    return 0


def presets_command(options: argparse.Namespace) -> int:
    """Lists presets, or shows one as `key=value` lines."""
    from pipelines import presets

    if options.preset:
        _print_parameters(presets.load(options.preset))
    else:
        for name in presets.names():
            print(f"{name}: {presets.description(name)}")
    return 0


def variants_command(options: argparse.Namespace) -> int:
    """Lists the files of variants, or shows one: every variant and the parameters that it sets."""
    from pipelines import variants

    if options.file:
        for variant in variants.load(options.file).variants:
            print(f"{variant.name}: {variant.description}")
            _print_parameters(variant.parameters, "  ")
    else:
        for name in variants.names():
            print(f"{name}: {variants.load(name).description}")
    return 0


def _print_parameters(parameters: dict[str, Any], indent: str = "") -> None:
    for name, value in parameters.items():
        print(f"{indent}{name}={str(value).lower() if isinstance(value, bool) else value}")


if __name__ == "__main__":
    # A run on this machine is work, and not done when nobody reads of it any more.
    sys.exit(main() if sys.argv[1:2] in LASTING else pipes.run(main))
