"""The contract between Kubeflow's message, the command line and a step."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field

from components.entrypoint import Step, StepRun
from components.executor_input import ExecutorInput, local_path
from llm_retriever.errors import InputError
from llm_retriever.settings import Place
from llm_retriever.settings.common import Gpus
from llm_retriever.stores.secret import read_secret


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
        raise InputError("the text is empty", file=step.inputs["original"], line=1, field="text", hint="write one")
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


def with_nulls(value: Any) -> Any:
    """Kubeflow's message with what is empty in it said to be null."""
    return {key: with_nulls(part) or None for key, part in value.items()} if isinstance(value, dict) else value


def test_what_is_empty_in_kubeflows_message_may_be_null(tmp_path: Path) -> None:
    (tmp_path / "original").write_text("ab")
    content = with_nulls(json.loads(message(tmp_path)))
    content["outputs"]["artifacts"]["copy"]["artifacts"][0]["metadata"] = None
    assert STEP.execute(["--executor-input", json.dumps(content)]) == 0
    target = {"outputs": {"outputFile": str(tmp_path / "answer.json"), "artifacts": None}, "inputs": None}
    found = ExecutorInput(json.dumps(target), ["copy"])
    assert (found.parameters, found.inputs, found.outputs) == ({}, {}, {"copy": tmp_path / "copy"})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ((), []),
        (("outputs",), None),
        (("outputs", "outputFile"), 5),
        (("outputs", "outputFile"), "a\0b"),
        (("outputs", "artifacts"), ["copy"]),
        (("outputs", "artifacts", "copy"), None),
        (("outputs", "artifacts", "copy", "artifacts"), []),
        (("inputs",), "none"),
        (("inputs", "parameterValues"), [1]),
        (("inputs", "parameterValues"), {"times": None}),
        (("inputs", "parameterValues"), {"share": float("nan")}),
        (("inputs", "parameterValues"), {"share": 1e999}),
        (("inputs", "artifacts", "original"), {}),
        (("inputs", "artifacts", "original", "artifacts"), [None]),
        (("inputs", "artifacts", "original", "artifacts"), [{"uri": None}]),
        (("inputs", "artifacts", "original", "artifacts"), [{"uri": "s3://b/x", "customPath": 7}]),
    ],
)
def test_a_message_that_is_none_is_bad_input(tmp_path: Path, place: tuple[str, ...], value: Any, capfd: Any) -> None:
    (tmp_path / "original").write_text("ab")
    content = part = json.loads(message(tmp_path))
    for key in place[:-1]:
        part = part[key]
    if place:
        part[place[-1]] = value
    assert STEP.execute(["--executor-input", json.dumps(content if place else value)]) == 2
    assert capfd.readouterr().err.startswith("copy: ")


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


def test_bad_input_names_file_line_field_and_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_path_that_no_file_can_have_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = tmp_path / ("x" * 300)
    assert STEP.execute(["--original", str(original), "--copy", "b"]) == 2
    assert capsys.readouterr().err == f"copy: {original}: file name too long; give another path\n"


def test_other_failures_end_with_code_1_and_a_traceback_only_on_demand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "original").write_text("broken")
    flags = ["--original", str(tmp_path / "original"), "--copy", str(tmp_path / "copy")]
    assert STEP.execute(flags) == 1
    assert capsys.readouterr().err == "copy: RuntimeError: the copier jammed (--debug shows where)\n"
    assert STEP.execute([*flags, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_program_that_runs_a_step_keeps_its_own_way_to_stop(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert STEP.execute(["--original", str(tmp_path / "none"), "--copy", "x"]) == 2
    assert signal.getsignal(signal.SIGTERM) is before


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


@dataclass(frozen=True)
class EncodeSettings:
    """Settings of every place."""

    depth: Annotated[int, Field(ge=1, description="In the form."), Place.FORM] = 10
    gpus: Gpus = ""
    rank: Annotated[int, Field(ge=1, description="In the options.")] = 16
    rate: Annotated[float, Field(description="In the options.")] = 0.5
    name: Annotated[str, Field(description="In the options.")] = ""
    minutes: Annotated[float, Field(gt=0, description="In the pod."), Place.POD] = 10.0


def encode(step: StepRun[EncodeSettings]) -> None:
    step.results["told"] = {**asdict(step.settings), "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


ENCODE = Step("encode", EncodeSettings, encode, stage="tune")


def told(tmp_path: Path, **parameters: Any) -> tuple[int, dict[str, Any]]:
    answer = tmp_path / "executor_output.json"
    text = json.dumps({"inputs": {"parameterValues": parameters}, "outputs": {"outputFile": str(answer)}})
    code = ENCODE.execute(["--executor-input", text])
    return code, json.loads(answer.read_text())["parameterValues"]["told"] if code == 0 else {}


def test_settings_come_from_the_form_the_options_a_variant_and_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whole numbers are floats in Kubeflow's message, and the pod may hold settings of other steps of its stage.
    monkeypatch.setenv("LLM_RETRIEVER_POD_SETTINGS", '{"minutes": 1.0, "threads": 3}')
    given = {"depth": 20.0, "options": {"rank": 64.0, "rate": 1.0}, "overrides": {"rank": 8.0, "depth": 5}}
    assert told(tmp_path, **given)[1] == {
        "depth": 5,
        "gpus": "",
        "rank": 8,
        "rate": 1.0,
        "name": "",
        "minutes": 1.0,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (
            {"options": {"rnak": 8}},
            'encode: field "tune_options.rnak": is not a key of these options; did you mean rank?',
        ),
        ({"options": {"depth": 8}}, 'encode: field "tune_options.depth": has a parameter of its own; give it there'),
        ({"options": {"minutes": 8}}, 'encode: field "tune_options.minutes": is not a key of these options'),
        (
            {"options": {"rank": "8"}},
            "encode: field \"tune_options.rank\": '8' is not of type int; give for instance 16",
        ),
        ({"overrides": "x"}, 'encode: field "overrides": must be an object, not str; give {}'),
        ({"overrides": [1]}, 'encode: field "overrides": must be an object, not list'),
        ({"options": {"rank": 1.5}}, 'encode: field "tune_options.rank": 1.5 is not of type int'),
        ({"options": {"rank": True}}, 'encode: field "tune_options.rank": True is not of type int'),
        ({"options": {"name": 3}}, 'encode: field "tune_options.name": 3 is not of type str'),
        ({"options": {"rank": None}}, 'encode: field "tune_options.rank": None is not of type int'),
        ({"options": {"rank": 0}}, 'encode: field "rank": 0 is refused; input should be greater than or equal to 1'),
        ({"options": [1]}, 'encode: field "tune_options": [1] is no JSON object'),
        ({"options": "rank"}, "encode: field \"tune_options\": 'rank' is no JSON object"),
        ({"gpus": "3"}, "encode: field \"gpus\": '3' is refused"),
        ({"gpus": "two"}, "encode: field \"gpus\": 'two' is refused"),
    ],
)
def test_options_that_do_not_fit_end_with_code_2(
    parameters: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(tmp_path, **parameters)[0] == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_settings_of_a_pod_that_are_no_object_are_bad_input(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLM_RETRIEVER_POD_SETTINGS", text)
    assert told(tmp_path)[0] == 2
    assert 'field "LLM_RETRIEVER_POD_SETTINGS"' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="this machine has GPUs")
@pytest.mark.parametrize("gpus", ["1", "8", 2, 2.0])
def test_fewer_gpus_than_asked_for_is_bad_input_and_not_a_slow_run(
    gpus: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(tmp_path, gpus=gpus)[0] == 2
    number = int(float(gpus))
    asked = f"{number} GPU{'s' if number > 1 else ''} asked for, none on this machine"
    assert capsys.readouterr().err.startswith(f'encode: field "gpus": {asked}; ')


def test_no_gpu_asked_for_hides_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    assert told(tmp_path, gpus="0")[1]["visible"] == ""
    assert os.environ["HIP_VISIBLE_DEVICES"] == ""


def test_the_keys_of_the_store_and_the_hub_are_read_from_files_of_the_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "HF_TOKEN"):
        monkeypatch.setenv(name, "")  # a name that was not there would not be taken away again
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3", "HF_TOKEN", "PATH"):
        (tmp_path / name).write_text(f"{name} of the secret\n", encoding="utf-8-sig")
    before = os.environ["PATH"]
    read_secret(tmp_path)
    assert os.environ["AWS_ACCESS_KEY_ID"] == "AWS_ACCESS_KEY_ID of the secret"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "mine"
    assert os.environ["AWS_ENDPOINT_URL_S3"] == "AWS_ENDPOINT_URL_S3 of the secret"
    assert os.environ["HF_TOKEN"] == "HF_TOKEN of the secret"
    assert "AWS_DEFAULT_REGION" not in os.environ
    assert os.environ["PATH"] == before
