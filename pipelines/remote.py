"""Commands for a cluster, and the rerun of one step here or there."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from pipelines.choice import Choice, check_room, chosen, names_of

BUILD = Path("build")
EXPERIMENT = "retrievers"
PRESET = "a published recipe, or a .toml of one's own"
PLACES = ("corpus_uri", "promote_uri", "run_checkpoint_uri")
CHECKED = "parameters are checked against the steps' settings before anything reaches the cluster"


def add_commands(commands: Any, add_pipeline: Any, chosen: Any) -> None:
    """Adds submit, schedule, rerun and status to the command line.

    Args:
        commands: Subparsers of argparse.
        add_pipeline: Adds the arguments that name a pipeline and its parameters.
        chosen: Makes name, pipeline and parameters of these arguments.
    """
    _add_submit(commands, add_pipeline, chosen)
    _add_schedule(commands, add_pipeline, chosen)
    _add_rerun(commands)
    _add_status(commands)


def _add_submit(commands: Any, add_pipeline: Any, chosen: Any) -> None:
    submitting = commands.add_parser("submit", help=f"start a run on a cluster; {CHECKED}")
    _add_cluster(submitting)
    submitting.add_argument("--preset", metavar="NAME|FILE", help=PRESET)
    submitting.add_argument("--run-name", help="(default: the pipeline and the time)")
    submitting.add_argument("--no-cache", action="store_true", help="run every step anew")
    submitting.add_argument("--wait", action="store_true", help="follow the run; exit code 1 when it does not succeed")
    add_pipeline(submitting, "what differs from the preset")
    submitting.set_defaults(command=submit_command, chosen=chosen)


def _add_schedule(commands: Any, add_pipeline: Any, chosen: Any) -> None:
    scheduling = commands.add_parser("schedule", help="create or replace a recurring run, enabled, one run at a time")
    _add_cluster(scheduling)
    scheduling.add_argument("--name", default="", help="of the recurring run; one of the same name is replaced")
    scheduling.add_argument("--cron", default="", help='six fields, seconds first: "0 0 2 * * *" is every night at two')
    scheduling.add_argument("--every-seconds", type=int, default=0, metavar="N", help="instead of --cron")
    scheduling.add_argument("--list", action="store_true", help="list the recurring runs of the experiment instead")
    scheduling.add_argument(
        "--remove", default="", metavar="NAME", help="remove the recurring run of this name instead"
    )
    scheduling.add_argument("--preset", metavar="NAME|FILE", help=PRESET)
    add_pipeline(scheduling, "what differs from the preset", "retrain")
    scheduling.set_defaults(command=schedule_command, chosen=chosen)


def _add_rerun(commands: Any) -> None:
    rerunning = commands.add_parser("rerun", help="run one step alone, on the artifacts of an earlier run")
    _add_cluster(rerunning)
    rerunning.add_argument("step", help="prepare_corpus, mine_negatives, …, evaluate, promote")
    rerunning.add_argument(
        "--from-run",
        metavar="RUN",
        required=True,
        help="folder of a local run (build/runs/…), or s3://ROOT/PIPELINE/RUN-ID of one on a cluster",
    )
    rerunning.add_argument("--preset", metavar="NAME|FILE", help=f"{PRESET}; what the earlier run was told comes first")
    rerunning.add_argument("--root", type=Path, default=BUILD, help="outputs of a local rerun (default: %(default)s)")
    rerunning.add_argument("parameters", nargs="*", metavar="key=value", help="settings or URIs that differ")
    rerunning.set_defaults(command=rerun_command)


def _add_status(commands: Any) -> None:
    showing = commands.add_parser("status", help="list the latest runs, or show one run's tasks")
    _add_cluster(showing, "--experiment", "--service-account")
    showing.add_argument(
        "run", nargs="?", metavar="RUN", help="id of a run; the exit code is 1 when it did not succeed"
    )
    showing.add_argument("--wait", action="store_true", help="follow it to its end")
    showing.set_defaults(command=status_command)


def _add_cluster(parser: argparse.ArgumentParser, *without: str) -> None:
    options = {
        "--endpoint": ("URL", "of the Pipelines API (default: KF_PIPELINES_ENDPOINT)", ""),
        "--namespace": ("NAME", "profile namespace of a multi-user installation", ""),
        "--token-file": ("FILE", "with a bearer token (default: the pod's own, or none)", ""),
        "--certificate": ("FILE", "certificate authority of the endpoint", ""),
        "--experiment": ("NAME", "(default: %(default)s)", EXPERIMENT),
        "--pipeline-root": ("URI", "where artifacts go (default: the namespace's)", ""),
        "--service-account": ("NAME", "that steps run as (default: the installation's)", ""),
    }
    for flag, (metavar, meaning, default) in options.items():
        if flag not in without:
            parser.add_argument(flag, metavar=metavar, help=meaning, default=default)


def _connected(options: argparse.Namespace) -> Any:
    from pipelines.cluster import Address, Cluster

    for field in ("token_file", "certificate"):
        path = getattr(options, field)
        if path and not Path(path).is_file():
            raise InputError("no such file", file=path, field="--" + field.replace("_", "-"))
    return Cluster(Address(options.endpoint, options.namespace, options.token_file, options.certificate))


@contextmanager
def _compiled(choice: Choice) -> Iterator[Path]:
    """Compiles a pipeline with its pods; the values of its form go with the run."""
    from pipelines.compilation import compile_pipeline

    with tempfile.TemporaryDirectory() as scratch:
        yield compile_pipeline(choice.pipeline, Path(scratch) / f"{choice.name}.yaml", replace(choice.told, form={}))


def submit_command(options: argparse.Namespace) -> int:
    """Starts a run."""
    choice = options.chosen(options)
    _check_paths(choice.flat)
    check_room(choice)
    cluster = _connected(options)
    with _compiled(choice) as package:
        run = cluster.submit(
            package,
            choice.told.form,
            experiment=options.experiment,
            name=options.run_name or f"{choice.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            pipeline_root=options.pipeline_root,
            service_account=options.service_account,
            caching=not options.no_cache,
        )
    print(run)
    return _follow(cluster, run, options.pipeline_root) if options.wait else 0


def schedule_command(options: argparse.Namespace) -> int:
    """Creates or replaces a recurring run."""
    from pipelines.cluster import check_trigger

    if options.list or options.remove:
        return _schedules_command(options)
    if not options.name.strip():
        raise InputError("a schedule needs a name", field="--name", hint="--name nightly")
    check_trigger(options.cron, options.every_seconds)
    choice = options.chosen(options)
    _check_paths(choice.flat)
    check_room(choice)
    cluster = _connected(options)
    with _compiled(choice) as package:
        job, replaced = cluster.schedule(
            package,
            choice.told.form,
            experiment=options.experiment,
            name=options.name,
            cron=options.cron,
            every_seconds=options.every_seconds,
            pipeline_root=options.pipeline_root,
            service_account=options.service_account,
        )
    print(f"{job} ({'replaces ' + str(replaced) + ' of the same name' if replaced else 'new'}, enabled)")
    return 0


def _schedules_command(options: argparse.Namespace) -> int:
    """Lists the schedules of an experiment, or removes one."""
    others = {"--name": options.name, "--cron": options.cron, "--every-seconds": options.every_seconds}
    others |= {"--preset": options.preset, "key=value": options.parameters}
    asked = "--list" if options.list else "--remove"
    for field in [field for field, value in others.items() if value] + ["--remove"] * (
        options.list and bool(options.remove)
    ):
        hint = "--remove NAME needs nothing else; to replace a schedule, create it again"
        raise InputError(f"does not go with {asked}", field=field, hint=hint)
    cluster = _connected(options)
    if options.list:
        for job in cluster.schedules(options.experiment):
            print(f"{job.id}  {'enabled' if job.enabled else 'disabled':<8}  {job.trigger:<22}  {job.name}")
        return 0
    for removed in cluster.remove_schedule(options.remove, options.experiment):
        print(f"{removed} (removed; runs that it started stay)")
    return 0


def rerun_command(given: argparse.Namespace) -> int:
    """Runs one step again: here, when the earlier run was one of this machine and no endpoint is given."""
    choice = _rerun(given)
    if Path(given.from_run).is_dir() and not given.endpoint:
        return _run_here(choice, given.root.absolute())
    _check_paths(choice.flat)
    cluster = _connected(given)
    with _compiled(choice) as package:
        title = f"{choice.name} of {given.from_run.rstrip('/').rsplit('/', 1)[-1]}"
        options = {"pipeline_root": given.pipeline_root, "service_account": given.service_account}
        print(cluster.submit(package, choice.told.form, experiment=given.experiment, name=title, **options))
    return 0


def _rerun(options: argparse.Namespace) -> Choice:
    """Builds the step's pipeline and its parameters: the earlier run's, over a preset, under the command line's."""
    from pipelines import presets
    from pipelines.rerun import PREFIX, from_run, uris_of

    name, places = f"{PREFIX}{options.step}", uris_of(options.step)
    words = [word for word in options.parameters if word.partition("=")[0] in places]
    uris = dict(word.split("=", 1) for word in words if "=" in word)
    own = presets.parsed(names_of(name), [word for word in options.parameters if word not in words]) | uris
    recipe = presets.load(options.preset) if options.preset else {}
    flat = {key: value for key, value in recipe.items() if key in names_of(name)}
    return chosen(name, flat | from_run(options.step, options.from_run, own) | own, preset=options.preset)


def _run_here(choice: Choice, root: Path) -> int:
    from pipelines import journal, local
    from pipelines.compilation import compile_pipeline

    package = compile_pipeline(choice.pipeline, root / f"{choice.name}.local.yaml", replace(choice.told, form={}))
    run = local.run_compiled(package, choice.told.form, root)
    print(journal.timing_table(run.records))
    if not run.exit_code and run.folder:
        print(f"outputs: {run.folder}")
    return run.exit_code


def status_command(options: argparse.Namespace) -> int:
    """Lists runs, or shows one."""
    from pipelines import following

    if options.wait and not options.run:
        raise InputError("no run to follow is named", field="RUN", hint="llm-retriever status lists them")
    cluster = _connected(options)
    if not options.run:
        following.list_runs(cluster)
        return 0
    if options.wait:
        return _follow(cluster, options.run, options.pipeline_root)
    return following.show(cluster, options.run, options.pipeline_root)


def _follow(cluster: Any, run: str, pipeline_root: str) -> int:
    from pipelines import following

    return following.follow(cluster, run, pipeline_root)


def _check_paths(parameters: dict[str, Any]) -> None:
    """Raises InputError for a directory of this machine, which pods cannot see."""
    for name in ("index_shards_uri", "mine_encoder_shards_uri"):
        value = str(parameters.get(name, ""))
        if value and not value.startswith("s3://"):
            raise InputError(f"{value!r} is not seen by all pods", field=name, hint="give s3://bucket/prefix")
    artifacts = [name for name in parameters if name.endswith("_uri") and name not in PLACES]
    for name in (*PLACES, "backbone", "mine_encoder", *artifacts):
        value = str(parameters.get(name, ""))
        if value and os.sep in value and "://" not in value and Path(value).exists():
            raise InputError(
                f"{value!r} is a directory of this machine, which pods cannot see",
                field=name,
                hint="copy it to S3 and give s3://bucket/prefix",
            )
