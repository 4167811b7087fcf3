"""The journal of a run on this machine: one line when a step starts, one when it ends, and a table at the end."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from llm_retriever.progress import seconds_as_text

EXECUTOR_INPUT = "executor_input.json"


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """The outcome of one step: `done`, `cached` or how it failed, in how many seconds, with how many bytes at its peak."""

    name: str
    outcome: str
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclasses.dataclass
class Journal:
    """The steps so far; prints one line when a step starts and one when it ends.

    Attributes:
        steps: How many there are; those of a pipeline within the pipeline are shown, but not counted.
        titles: What a task is called in those lines, by its name in the compiled pipeline.
    """

    steps: int
    titles: dict[str, str] = dataclasses.field(default_factory=dict)
    records: list[StepRecord] = dataclasses.field(default_factory=list)
    exit_code: int = 0

    def started(self, name: str) -> None:
        """Announces a step."""
        say(f"{self._count()} {name} …")

    def _count(self) -> str:
        counted = set(self.titles.values())
        return f"[{sum(record.name in counted for record in self.records) + 1}/{self.steps}]"

    def ended(self, record: StepRecord) -> None:
        """Records a step and reports on it."""
        count = f"{self._count()} {record.name}"
        self.records.append(record)
        if record.outcome == "cached":
            say(f"{count}: unchanged, taken from the cache")
        else:
            peak = f", peak {record.peak_bytes / 2**20:,.0f} MiB" if record.peak_bytes else ""
            say(f"{count}: {record.outcome} in {seconds_as_text(record.seconds)}{peak}")


def answer_of(command: list[str]) -> Path:
    """Path of a step's answer to Kubeflow, by its container's command."""
    return Path(json.loads(command[-1])["outputs"]["outputFile"])


def note_inputs(command: list[str]) -> None:
    """Keeps a step's message beside its outputs, so that it can be rerun on the same artifacts."""
    message_file = answer_of(command).with_name(EXECUTOR_INPUT)
    message_file.parent.mkdir(parents=True, exist_ok=True)
    message_file.write_text(command[-1])


def step_name(command: list[str], journal: Journal) -> str:
    """Name of a step in the journal, by its container's command."""
    task = answer_of(command).parent.name
    return journal.titles.get(task, command[2].removeprefix("components."))


def timing_table(records: list[StepRecord]) -> str:
    """Formats steps, outcomes and times, for the terminal."""
    width = max((len(record.name) for record in records), default=0)
    rows = [
        f"  {r.name:<{width}}  {r.outcome:<8}  {seconds_as_text(r.seconds):>7}  {r.peak_bytes / 2**20:>8,.0f} MiB"
        for r in records
    ]
    total = seconds_as_text(sum(record.seconds for record in records))
    return "\n".join([*rows, f"  {'total':<{width}}  {'':<8}  {total:>7}"])


def say(line: str) -> None:
    """Prints a line at once, whatever KFP does with what is printed while a task runs."""
    sys.stderr.write(line + "\n")  # KFP indents whatever goes through print
    sys.stderr.flush()
