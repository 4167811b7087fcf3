"""A step that crashes as it is told, for the tests of its supervision; every attempt leaves a line beside its output."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from components.entrypoint import Step, StepRun
from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.processes.crashes import was_restarted
from llm_retriever.training.passes import divisor

Act = Literal["work", "kill", "abort", "lose", "starve", "refuse", "err", "fill", "leave", "draft", "wait"]


@dataclass(frozen=True)
class CrashSettings:
    """Crashes."""

    act: Annotated[Act, Field(description="What to do.")] = "work"
    attempts: Annotated[int, Field(ge=0, description="How many attempts do it; the next one works.")] = 1
    micro_batch_size: Annotated[int, Field(description="Of nothing.")] = 8


def run(step: StepRun[CrashSettings]) -> None:
    result, act = step.outputs["result"], step.settings.act
    attempts = result.with_name("attempts.jsonl")
    told = {"pid": os.getpid(), "divisor": divisor(), "restarted": was_restarted(), "left": left_running(result)}
    told["scratch"] = os.environ.get("TMPDIR", "")
    with attempts.open("a") as file:
        file.write(json.dumps(told) + "\n")
    if len(attempts.read_text().splitlines()) <= step.settings.attempts:
        crash(act, result)
    files.write_text(result, "done")


def left_running(result: Path) -> bool:
    """Whether the process that an earlier attempt started in a session of its own is still there."""
    noted = result.with_name("left")
    return noted.exists() and Path(f"/proc/{noted.read_text()}").exists()


def crash(act: Act, result: Path) -> None:
    if act in ("kill", "abort"):
        os.kill(os.getpid(), signal.SIGKILL if act == "kill" else signal.SIGABRT)
    if act == "lose":
        raise ConnectionResetError("the other side is gone")
    if act == "starve":
        raise MemoryError("no room")
    if act == "refuse":
        raise InputError("the text is empty", file="corpus.jsonl", line=17, field="text", hint="give it a text")
    if act == "err":
        raise TypeError("a mistake of ours")
    if act == "fill":
        raise OSError(errno.ENOSPC, "No space left on device")
    if act == "leave":
        program = [sys.executable, "-c", "import time; time.sleep(600)"]
        result.with_name("left").write_text(str(subprocess.Popen(program, start_new_session=True).pid))
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "draft":
        with files.atomic_directory(result):
            os.kill(os.getpid(), signal.SIGKILL)
    while act == "wait":
        time.sleep(0.05)


STEP = Step("crashing_step", CrashSettings, run, outputs={"result": "What it has done."}, restarts=True)

if __name__ == "__main__":
    STEP.main()
