"""From a container's command line to a library call and back: the contract between Kubeflow and every step.

A step is started either by Kubeflow with one `--executor-input` JSON message, or by hand with plain flags. Both become the
same `StepRun`. Bad input ends with exit code 2 and one line; `executor_output.json` is written last, when all outputs are
complete.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Literal, NoReturn

from components import supervision
from components.executor_input import ExecutorInput
from components.outputs import check_outputs
from llm_retriever.errors import EXIT_BAD_INPUT, InputError, refusal_of
from llm_retriever.files.layouts import OUTPUTS, Layout, Page
from llm_retriever.files.names import slug
from llm_retriever.files.seal import check_seal
from llm_retriever.processes.devices import claim_gpus
from llm_retriever.settings.options import OPTIONS, OVERRIDES, checked_options, pod_settings
from llm_retriever.settings.parameters import SettingsClass, as_dict, build, parameters
from llm_retriever.stores.secret import read_secret

EXIT_INTERRUPTED = 130
MEMORY_SETTINGS = ("micro_batch_size", "gradient_cache")
"""Settings of a training that lower the memory it needs."""


@dataclasses.dataclass
class StepRun(Generic[SettingsClass]):
    """One execution of a step: where its inputs lie, where its outputs go, and its settings.

    Attributes:
        inputs: Path of every input artifact, by name.
        collected: Paths of the inputs of which there may be any number: by name of the input and name of the artifact.
        outputs: Path that every output artifact must be written to, by name.
        metadata: Numbers and texts that Kubeflow shows beside an output artifact; filled by the step. Not for artifacts that
            other steps read: each of their numbers stands in the run's object six times a reader.
        results: Output parameters; filled by the step.
    """

    settings: SettingsClass
    inputs: dict[str, Path]
    outputs: dict[str, Path]
    metadata: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)
    collected: dict[str, dict[str, Path]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Step(Generic[SettingsClass]):
    """A step as its `__main__.py` declares it.

    Attributes:
        name: Folder under `components/`.
        settings: Its settings class in `llm_retriever.settings`.
        stage: The part of a pipeline that it belongs to; the prefix of its parameters there.
        stage_settings: Settings class whose options it is given, where several steps of the stage share them.
        run: The adapter: unpacks a `StepRun` and calls the library. Heavy imports happen inside.
        inputs: Name and meaning of the input artifacts.
        outputs: Name and meaning of the output artifacts.
        results: Name and meaning of the output parameters.
        collected: Name and meaning of the inputs of which there may be any number. Kubeflow gives each artifact of
            `evaluation` as an input of its own, named by `collected_name`; by hand it is `--evaluations NAME=PATH …`.
        images: The images that have what it needs, `cpu` or `gpu`; a pipeline takes the first.
        requests: Processors and memory that its pod asks for; those of the first step of a stage hold for all of it.
        gpus: GPUs that its pod asks for, where it has the setting `gpus`.
        cached: Whether its inputs say all that it does: Kubeflow may take its outputs from an earlier run.
        layouts: How its earlier outputs are known, so that it may replace them, where `files.layouts` does not know them.
        restarts: Whether it works for long: its program then starts the work as a process of its own, and that again after
            a crash that may pass.
        memory_settings: What lowers the memory that it needs, where a setting of a training is none of its own.
    """

    name: str
    settings: type[SettingsClass]
    run: Callable[[StepRun[SettingsClass]], None]
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    outputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    results: Mapping[str, str] = dataclasses.field(default_factory=dict)
    collected: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stage: str = ""
    stage_settings: type | None = None
    images: tuple[Literal["cpu", "gpu"], ...] = ("cpu",)
    requests: tuple[str, str] = ("1", "4Gi")
    gpus: str = "1"
    cached: bool = True
    layouts: Mapping[str, Layout | Page] = dataclasses.field(default_factory=dict)
    restarts: bool = False
    memory_settings: tuple[str, ...] = ()

    def main(self) -> NoReturn:
        """Runs the step with this process's command line and ends the process: 0 done, 2 bad input, 1 anything else."""
        sys.exit(self._supervised() if self.restarts and not supervision.become_worker() else self.execute())

    def execute(self, arguments: list[str] | None = None) -> int:
        """Runs the step with a command line and returns its exit code."""
        options = self.parser().parse_args(arguments)
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            if options.executor_input is not None:
                self._run_for_kubeflow(options.executor_input)
            else:
                self._run_by_hand(options)
        except InputError as error:
            return self._refused(error, debug=options.debug)
        except KeyboardInterrupt:
            kept = "; the same command goes on from what is complete by now" if self.restarts else ""
            print(f"{self.name}: interrupted{kept}", file=sys.stderr, flush=True)
            return EXIT_INTERRUPTED
        except Exception as error:
            if refusal := refusal_of(error):
                return self._refused(refusal, debug=options.debug)
            if not options.debug:
                print(
                    f"{self.name}: {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr, flush=True
                )
            else:
                traceback.print_exc()
            return supervision.exit_code(error)
        finally:
            # Who calls this from a program of his own goes on with what he had.
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        return 0

    def _refused(self, error: InputError, *, debug: bool) -> int:
        """Prints bad input in one line, in debugging with its traceback; returns the exit code."""
        if debug:
            traceback.print_exc()
        print(f"{self.name}: {error}", file=sys.stderr, flush=True)
        return EXIT_BAD_INPUT

    def _supervised(self) -> int:
        """Runs the work in a process of its own, or in this one where no restarts are wanted; returns the exit code."""
        options = self.parser().parse_args()
        try:
            restarts = supervision.allowed_restarts(options.restarts)
        except InputError as error:
            return self._refused(error, debug=False)
        if not restarts:
            return self.execute()
        memory = self.memory_settings or tuple(name for name in MEMORY_SETTINGS if name in parameters(self.settings))
        return supervision.Supervisor(self.name, restarts, memory_settings=memory).run()

    def parser(self) -> argparse.ArgumentParser:
        """Builds the command line: a flag for every artifact and setting, or `--executor-input` alone."""
        summary = (self.settings.__doc__ or "").strip()
        parser = argparse.ArgumentParser(prog=f"python -m components.{self.name}", description=summary)
        parser.add_argument("--executor-input", metavar="JSON", help="Kubeflow's message; replaces all other flags.")
        parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        if self.restarts:
            parser.add_argument(
                "--restarts",
                metavar="N",
                help=f"How often work that crashes is started again, from its last checkpoint; bad input never is. (default: "
                f"{supervision.RESTARTS} or {supervision.DEFAULT_RESTARTS})",
            )
        for title, artifacts in (("inputs", self.inputs), ("outputs", self.outputs)):
            group = parser.add_argument_group(title)
            for name, meaning in artifacts.items():
                group.add_argument(_flag(name), dest=name, metavar="PATH", help=_escaped(meaning))
            if title == "inputs":
                for name, meaning in self.collected.items():
                    group.add_argument(
                        _flag(name) + "s", dest=name, nargs="+", metavar="NAME=PATH", help=_escaped(meaning)
                    )
        group = parser.add_argument_group("settings")
        for name, p in parameters(self.settings).items():
            shown = f"{p.help} (default: {p.default!r})"
            if p.choices:
                shown = f"{p.help} One of {', '.join(repr(c) for c in p.choices)} (default: {p.default!r})"
            group.add_argument(_flag(name), dest=name, metavar=p.type.__name__.upper(), help=_escaped(shown))
        return parser

    def _run_by_hand(self, options: argparse.Namespace) -> None:
        missing = [_flag(name) for name in (*self.inputs, *self.outputs) if getattr(options, name) is None]
        missing += [_flag(name) + "s" for name in self.collected if not getattr(options, name)]
        if missing:
            raise InputError("is missing", field=missing[0], hint="give it a path; --help lists all flags")
        names = parameters(self.settings)
        settings = build(self.settings, {n: getattr(options, n) for n in names if getattr(options, n) is not None})
        inputs = {name: Path(getattr(options, name)) for name in self.inputs}
        _check_present(inputs)
        run = StepRun(settings, inputs, {name: Path(getattr(options, name)) for name in self.outputs})
        run.collected = {name: _named_paths(_flag(name) + "s", getattr(options, name)) for name in self.collected}
        read = {_flag(name): path for name, path in inputs.items()}
        read |= {f"{_flag(n)}s {one}": path for n, found in run.collected.items() for one, path in found.items()}
        check_outputs(read, run.outputs, as_dict(settings), {**OUTPUTS, **self.layouts})
        self._work(run)
        for name, value in run.results.items():
            print(f"{name}: {value}")

    def _run_for_kubeflow(self, text: str) -> None:
        message = ExecutorInput(text, self.outputs)
        read_secret()
        settings = build(self.settings, self.told(message.parameters))
        _check_present(message.inputs)
        run = StepRun(settings, dict(message.inputs), message.outputs)
        for name in self.collected:
            found = [key for key in run.inputs if key.startswith(f"{name}_") and key not in self.inputs]
            run.collected[name] = {key.removeprefix(f"{name}_"): run.inputs.pop(key) for key in found}
        self._work(run)
        message.finish(run.results, run.metadata)

    def told(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Reads settings from Kubeflow's message and this pod's environment; the message wins.

        Args:
            given: The message's parameters; Kubeflow adds some of its own, such as the number of GPUs.

        Raises:
            InputError: The options of the stage are not what they should be.
        """
        own = parameters(self.settings)
        field = f"{self.stage}_{OPTIONS}"
        options = checked_options(self.stage_settings or self.settings, given.get(OPTIONS) or {}, field)
        overrides = {} if OVERRIDES in own else given.get(OVERRIDES) or {}
        if not isinstance(overrides, dict):
            raise InputError(f"must be an object, not {type(overrides).__name__}", field=OVERRIDES, hint="give {}")
        sources = (pod_settings(os.environ, own), given, options, overrides)
        return {name: value for source in sources for name, value in source.items() if name in own}

    def _work(self, run: StepRun[SettingsClass]) -> None:
        for path in (*run.inputs.values(), *(path for paths in run.collected.values() for path in paths.values())):
            check_seal(path)
        claim_gpus(getattr(run.settings, "gpus", ""))
        self.run(run)


def collected_name(name: str, artifact: str) -> str:
    """Kubeflow's name of one artifact of an input that takes any number.

    >>> collected_name("evaluation", "LLM-QL")
    'evaluation_llm_ql'
    """
    return f"{name}_{slug(artifact)}"


def _named_paths(flag: str, texts: list[str]) -> dict[str, Path]:
    """Parses `NAME=PATH` texts as paths by name, in order."""
    paths: dict[str, Path] = {}
    for text in texts:
        name, equals, path = (part.strip() for part in text.partition("="))
        if not (name and equals and path):
            raise InputError(f"{text!r} is not of the form NAME=PATH", field=flag, hint="write for instance llm-ql=DIR")
        if slug(name) in map(slug, paths):
            raise InputError(f"{name!r} is given twice", field=flag, hint="give every artifact a name of its own")
        if not Path(path).exists():
            raise InputError(
                "no such file or directory", file=path, field=flag, hint="give the output of an earlier step"
            )
        paths[name] = Path(path)
    return paths


def _check_present(inputs: Mapping[str, Path]) -> None:
    for name, path in inputs.items():
        if not path.exists():
            raise InputError(
                "no such file or directory", file=path, field=_flag(name), hint="give the output of an earlier step"
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """Turns SIGTERM into an ordinary exit, so that temporary files are removed and checkpoints written."""
    raise SystemExit(128 + number)
