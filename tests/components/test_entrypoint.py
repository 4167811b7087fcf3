"""The contract between Kubeflow's message, the command line and a step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from components.entrypoint import ExecutorInput, Step, StepRun, local_path
from llm_retriever.errors import InputError


@dataclass(frozen=True)
class CopySettings:
    """Copies a text a number of times."""

    times: Annotated[int, Field(ge=1, description="How many times.")] = 2
    share: Annotated[float, Field(ge=0, le=1, description="How much of it, 100% = 1.")] = 1.0
    loud: Annotated[bool, Field(description="In capitals.")] = False


def copy(step: StepRun[CopySettings]) -> None:
    text = step.inputs["original"].read_text()
    if text == "broken":
        raise RuntimeError("the copier jammed")
    if text == "empty":
        raise InputError("the text is empty", file=step.inputs["original"], line=1, field="text", mend="write one")
    step.outputs["copy"].write_text((text.upper() if step.settings.loud else text) * step.settings.times)
    step.metadata["copy"] = {"length": len(text), "nothing": None, "infinite": float("inf")}
    step.results["total"] = len(text) * step.settings.times


STEP = Step(
    "copy", CopySettings, copy, {"original": "What to copy."}, {"copy": "The copies."}, {"total": "Characters."}
)


def message(tmp_path: Path, **parameters: Any) -> str:
    artifact = {"name": "copy", "uri": str(tmp_path / "out" / "deep" / "copy"), "metadata": {"kept": 1.0}}
    return json.dumps(
        {
            "inputs": {
                "parameterValues": parameters,
                "artifacts": {"original": {"artifacts": [{"name": "o", "uri": str(tmp_path / "original")}]}},
            },
            "outputs": {
                "outputFile": str(tmp_path / "out" / "meta" / "executor_output.json"),
                "artifacts": {"copy": {"artifacts": [artifact]}},
            },
        }
    )


def test_kubeflows_message_becomes_a_run_and_its_answer_names_every_output(tmp_path: Path) -> None:
    (tmp_path / "original").write_text("ab")
    # Numbers arrive as floats, and Kubeflow adds parameters of its own.
    text = message(tmp_path, times=3.0, share=1, loud=True, base_image="image:1")
    assert STEP.execute(["--executor-input", text]) == 0
    assert (tmp_path / "out" / "deep" / "copy").read_text() == "ABABAB"
    answer = json.loads((tmp_path / "out" / "meta" / "executor_output.json").read_text())
    assert answer["parameterValues"] == {"total": 6}
    [copied] = answer["artifacts"]["copy"]["artifacts"]
    assert copied["metadata"] == {"kept": 1.0, "length": 2}
    assert set(copied) == {"name", "uri", "metadata"}


def test_plain_flags_run_the_same_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "original").write_text("ab")
    flags = [
        "--original",
        str(tmp_path / "original"),
        "--copy",
        str(tmp_path / "copy"),
        "--times",
        "2",
        "--loud",
        "true",
    ]
    assert STEP.execute(flags) == 0
    assert (tmp_path / "copy").read_text() == "ABAB"
    assert "total: 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--times", "0"], "copy: field \"times\": '0' is refused; input should be greater than or equal to 1"),
        (["--times", "two"], "copy: field \"times\": 'two' is refused; input should be a valid integer"),
        (["--share", "1.5"], "copy: field \"share\": '1.5' is refused; input should be less than or equal to 1"),
    ],
)
def test_bad_settings_end_with_code_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], line: str
) -> None:
    (tmp_path / "original").write_text("ab")
    assert STEP.execute(["--original", str(tmp_path / "original"), "--copy", str(tmp_path / "copy"), *flags]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith(line)
    assert not (tmp_path / "copy").exists()


def test_bad_input_names_file_line_field_and_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = tmp_path / "original"
    original.write_text("empty")
    assert STEP.execute(["--executor-input", message(tmp_path)]) == 2
    assert capsys.readouterr().err == f'copy: {original}:1: field "text": the text is empty; write one\n'
    assert not (tmp_path / "out" / "meta" / "executor_output.json").exists()


def test_a_missing_flag_or_input_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert STEP.execute(["--copy", "x"]) == 2
    assert 'field "--original": is missing' in capsys.readouterr().err
    assert STEP.execute(["--original", str(tmp_path / "none"), "--copy", "x"]) == 2
    assert "no such file or directory" in capsys.readouterr().err


def test_other_failures_end_with_code_1_and_a_traceback_only_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "original").write_text("broken")
    flags = ["--original", str(tmp_path / "original"), "--copy", str(tmp_path / "copy")]
    assert STEP.execute(flags) == 1
    assert capsys.readouterr().err == "copy: RuntimeError: the copier jammed (--debug shows where)\n"
    assert STEP.execute([*flags, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_something_else_than_a_message_is_refused() -> None:
    with pytest.raises(InputError, match="not an executor input"):
        ExecutorInput("{{$}}")


@pytest.mark.parametrize(
    ("artifact", "path"),
    [
        ({"uri": "s3://bucket/a/b"}, "/s3/bucket/a/b"),
        ({"uri": "minio://bucket/a"}, "/minio/bucket/a"),
        ({"uri": "/somewhere/else"}, "/somewhere/else"),
        ({"uri": "s3://bucket/a", "customPath": "/mnt/a"}, "/mnt/a"),
    ],
)
def test_artifacts_lie_where_the_launcher_mounts_them(artifact: dict[str, str], path: str) -> None:
    assert str(local_path(artifact)) == path


def test_help_shows_every_flag_with_meaning_and_default() -> None:
    text = STEP.parser().format_help()
    for flag in ("--original", "--copy", "--times", "--share", "--loud", "--executor-input"):
        assert flag in text
    assert "100% = 1" in text
    assert "default: 2" in text
