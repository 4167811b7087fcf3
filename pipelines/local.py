"""Runs a compiled pipeline on this machine: KFP's own orchestrator, each container's command as a host process.

KFP's subprocess runner refuses container components and has no place to plug in another runner; what can be exchanged is
the handler of a task, which the orchestrator looks up anew for every task. Everything else (order, placeholders, artifacts,
cache) stays KFP's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

from kfp import components, local
from kfp.local import cache as kfp_cache
from kfp.local import logging_utils, pipeline_orchestrator, status, subprocess_task_handler, task_handler_interface

from llm_retriever.errors import EXIT_BAD_INPUT
from llm_retriever.files.code_digest import PACKAGE, code_digest
from pipelines.cached_outputs import CheckedCache
from pipelines.journal import EXECUTOR_INPUT, Journal, StepRecord, note_inputs, step_name, timing_table

ROOT = Path(__file__).parents[1]
# glibc gives every large tensor back to the kernel and fetches zeroed pages for the next one; keeping them made the
# pre-training of scratch:tiny 1.3 times as fast on 2 cores. Other C libraries ignore these.
REUSED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}
# Whoever starts a run may have folders of his own that are called `components`.
UNSHADOWED = {"PYTHONSAFEPATH": "1"}
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore::FutureWarning"}
CACHE_HIT = re.compile(r"Task (\S+) cache hit")


class HostTask(task_handler_interface.ITaskHandler):
    """One container command as a process of this machine, with this Python instead of the image's."""

    journal: ClassVar[Journal]

    def __init__(
        self,
        image: str,
        full_command: list[str],
        pipeline_root: str,
        runner: local.SubprocessRunner,
        env_vars: dict[str, str] | None = None,
    ) -> None:
        program, *arguments = full_command  # placeholders are already replaced
        self.command = [sys.executable if program == "python" else program, *arguments]
        self.name = step_name(full_command, self.journal)
        self.environment = {
            **UNSHADOWED,
            "PYTHONUNBUFFERED": "1",
            **QUIET,
            **REUSED_MEMORY,
            **os.environ,
            **(env_vars or {}),
        }
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

    def run(self) -> status.Status:
        """Runs the step to its end."""
        note_inputs(self.command)
        self.journal.started(self.name)
        started = time.monotonic()
        process = subprocess.Popen(self.command, env=self.environment)
        try:
            _, wait_status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        code = process.returncode = os.waitstatus_to_exitcode(wait_status)
        outcome = (
            "done" if code == 0 else "stopped by bad input" if code == EXIT_BAD_INPUT else f"FAILED (exit code {code})"
        )
        self.journal.exit_code = code if code in (0, EXIT_BAD_INPUT) else 1
        # ru_maxrss is in KiB on Linux and in bytes on macOS.
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.journal.ended(StepRecord(self.name, outcome, time.monotonic() - started, peak))
        return status.Status.SUCCESS if code == 0 else status.Status.FAILURE


class _OnlySteps(logging.Filter):
    """Drops KFP's running commentary from the root logger, and tells the journal of cache hits."""

    def __init__(self, journal: Journal) -> None:
        super().__init__()
        self.journal = journal

    def filter(self, record: logging.LogRecord) -> bool:
        hit = CACHE_HIT.search(record.getMessage())
        if hit:
            task = hit.group(1)
            self.journal.ended(StepRecord(self.journal.titles.get(task, task.replace("-", "_")), "cached"))
        return record.levelno >= logging.WARNING and "finished with status" not in record.getMessage()


@contextlib.contextmanager
def tasks_on_this_machine(journal: Journal, *, in_images: bool = False) -> Iterator[None]:
    """While this is open, KFP's local tasks are this machine's processes, or containers, and report to `journal`."""
    if in_images:
        from kfp.local import docker_task_handler

        from pipelines.containers import ContainerTask

        module, name, task = docker_task_handler, "DockerTaskHandler", ContainerTask
    else:
        module, name, task = subprocess_task_handler, "SubprocessTaskHandler", HostTask
    handler = type(f"Journalled{task.__name__}", (task,), {"journal": journal})
    only_steps = _OnlySteps(journal)
    commentary = logging.getLogger()
    level = commentary.level
    commentary.setLevel(logging.INFO)
    commentary.addFilter(only_steps)
    try:
        with (
            _replaced(module, name, handler),
            _replaced(kfp_cache, "LocalCache", CheckedCache),
            _replaced(logging_utils, "print_horizontal_line", lambda: None),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
            yield
    finally:
        commentary.removeFilter(only_steps)
        commentary.setLevel(level)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)


@dataclasses.dataclass(frozen=True)
class LocalRun:
    """The end of a run: its outputs (artifacts by name), its steps, the exit code it should have, and its folder."""

    outputs: dict[str, Any]
    records: list[StepRecord]
    exit_code: int
    folder: Path | None = None


def run_compiled(
    package: Path,
    arguments: dict[str, Any],
    root: Path,
    *,
    cache: bool = True,
    in_images: bool = False,
    network: str = "none",
) -> LocalRun:
    """Runs a compiled pipeline on this machine.

    Args:
        package: The YAML that would be uploaded to Kubeflow.
        arguments: Pipeline parameters that differ from their defaults.
        root: Everything goes here: `root/runs` and `root/cache`.
        cache: Take unchanged steps from the cache; a change of this project's code makes every step new, and a step is not
            taken whose outputs are gone or were changed since.
        in_images: Run the steps in their images instead of as processes; the cache is not used then, because it cannot tell
            one image from another under the same tag. Steps can see `root/runs` alone.
        network: Network of steps in images; see `containers.runner`.
    """
    specification = components.load_component_from_file(str(package)).pipeline_spec
    for component in (specification.root, *specification.components.values()):
        for task in component.dag.tasks.values():
            # A pod may come back on another node; a process here would fail the same way.
            task.ClearField("retry_policy")
    titles = _titles(specification, specification.root)
    journal = Journal(steps=len(titles), titles=titles)
    runner: Any = local.SubprocessRunner(use_venv=False)
    if in_images:
        from pipelines import containers

        runner = containers.runner(network)
        containers.open_to_everybody(root / "runs")
    local.init(
        runner,
        pipeline_root=str(root / "runs"),
        raise_on_error=False,
        enable_caching=cache and not in_images,
        cache_root=str(root / "cache" / code_digest(PACKAGE, ROOT / "components")[:16]),
    )
    before = set((root / "runs").glob("*"))
    # Without a handler SIGTERM would end this process alone and leave the step running.
    signal.signal(signal.SIGTERM, _stop)
    with tasks_on_this_machine(journal, in_images=in_images):
        outputs = pipeline_orchestrator.run_local_pipeline(specification, arguments)
    folders = set((root / "runs").glob("*-20*")) - before
    return LocalRun(outputs, journal.records, journal.exit_code, max(folders, default=None))


def _titles(specification: Any, component: Any) -> dict[str, str]:
    """Titles of tasks, by name; those in loops are left out, because nobody knows their number yet."""
    executors, found = specification.deployment_spec["executors"], dict[str, str]()
    for name, task in component.dag.tasks.items():
        own = specification.components[task.component_ref.name]
        if own.executor_label and "container" in executors[own.executor_label]:
            found[name] = _title(task.task_info.name)
        elif not own.executor_label and not task.WhichOneof("iterator"):
            found |= _titles(specification, own)
    return found


def _title(shown: str) -> str:
    """Title of a task by its name on Kubeflow's screen: `tune-retriever: LLM-QL` -> `tune_retriever: LLM-QL`."""
    component, colon, variants = shown.partition(":")
    return component.replace("-", "_") + colon + variants


def print_end(run: LocalRun, root: Path, names: Mapping[str, str]) -> None:
    """Prints the results, the steps with their times, and where the report lies.

    Args:
        run: What was run.
        root: Where the outputs in `names` are copied to.
        names: File names there, by output.
    """
    print(timing_table(run.records), file=sys.stderr)
    if run.exit_code:
        return
    found = {name: Path(artifact.uri) for name, artifact in run.outputs.items() if hasattr(artifact, "uri")}
    found = found or _left_by_promote(run.folder)
    for output, name in names.items():
        if output in found:
            target = root / name
            target.write_bytes(found[output].read_bytes())
            print(f"report: {target}" if output == "report" else target.read_text())
    if not found:
        print("Nothing has changed since the last run: nothing was trained.")


def _left_by_promote(folder: Path | None) -> dict[str, Path]:
    """What a run that ends with promote leaves beside the artifacts of its steps; nothing where nothing was trained."""
    told = next(iter(folder.glob(f"**/promote/{EXECUTOR_INPUT}")), None) if folder else None
    if told is None:
        return {}
    evaluation = Path(json.loads(told.read_text())["inputs"]["artifacts"]["evaluation"]["artifacts"][0]["uri"])
    return {name: evaluation.with_name(name) for name in ("summary", "report")} | {
        "decision": told.with_name("decision")
    }


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
