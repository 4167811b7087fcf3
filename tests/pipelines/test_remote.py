"""What the commands, and KFP's own, send to a cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from tests.pipelines.api_server import Request, Server, serving

ROOT = Path(__file__).parents[2]
SECRET = "planted-token-77aa"
GIVEN = ["corpus_uri=s3://bucket/corpus", "mine_depth=50", "promote_minimum_gain=0.5", "corpus_deduplicate=false"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving() as running:
        yield running


def submit(server: Server, *arguments: str) -> int:
    return main(["submit", "--endpoint", server.url, *arguments])


def only(requests: list[Request]) -> Any:
    (request,) = requests
    return request.body


def test_a_submission_sends_the_pipeline_with_typed_parameters(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        submit(server, "--run-name", "first", "--pipeline-root", "s3://b/root", "--service-account", "me", *GIVEN) == 0
    )
    body = only(server.asked("POST", "/runs"))
    assert body["display_name"] == "first"
    assert body["experiment_id"] == server.experiments["retrievers"]
    assert body["service_account"] == "me"
    assert body["runtime_config"]["pipeline_root"] == "s3://b/root"
    assert body["runtime_config"]["parameters"] == {
        "corpus_uri": "s3://bucket/corpus",
        "mine_depth": 50,
        "promote_options": {"minimum_gain": 0.5},
        "corpus_options": {"deduplicate": False},
    }
    specification = body["pipeline_spec"]["pipeline_spec"]
    assert specification["pipelineInfo"]["name"] == "train-retriever"
    assert "kubernetes" in body["pipeline_spec"]["platform_spec"]["platforms"]
    assert capsys.readouterr().out.strip() == "run-1"


def test_a_preset_fills_the_parameters_and_the_command_line_wins(server: Server) -> None:
    assert submit(server, "--preset", "llm-ql-llama2-7b", "tune_gpus=4", "corpus_uri=s3://bucket/corpus") == 0
    parameters = only(server.asked("POST", "/runs"))["runtime_config"]["parameters"]
    assert parameters["adapt_options"]["deepspeed"] == "zero3"
    assert parameters["adapt_gpus"] == "8"
    assert parameters["tune_gpus"] == "4"


def write_counts(path: Path, count: str) -> Path:
    path.write_text(f"[parameters]\ntune_gpus = {count}\n")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["train_retriever", "retrain", "compare_methods"])
@pytest.mark.parametrize(("count", "sent"), [("2", "2"), ('"2"', "2"), (None, None)])
def test_a_number_of_gpus_reaches_the_driver_as_a_text_however_it_was_given(
    server: Server, tmp_path: Path, pipeline: str, count: str | None, sent: str | None
) -> None:
    """The driver drops a number without a word, and takes the form's default where nothing is sent."""
    given = ["corpus_uri=s3://bucket/corpus", "promote_uri=s3://bucket/published"]
    given = given[:1] if pipeline == "compare_methods" else given
    preset = ["--preset", str(write_counts(tmp_path / "ours.toml", count))] if count else []
    assert submit(server, pipeline, *preset, *given) == 0
    assert submit(server, pipeline, *given, *([f"tune_gpus={count}"] if count == "2" else [])) == 0
    for request in server.asked("POST", "/runs"):
        parameters = request.body["runtime_config"]["parameters"]
        form = request.body["pipeline_spec"]["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]["tune_gpus"]
        assert form["parameterType"] == "STRING"
        assert form["defaultValue"] == "1"
        assert parameters.get("tune_gpus") in (sent, None)
        assert not isinstance(parameters.get("tune_gpus", ""), int | float)
    assert server.asked("POST", "/runs")[0].body["runtime_config"]["parameters"].get("tune_gpus") == sent


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["tune_gpus=3"], "field \"tune_gpus\": '3' is refused"),
        (["tune_gpus=-1"], "field \"tune_gpus\": '-1' is refused"),
        (
            ['tune_options={"lora_rnak": 8}'],
            'field "tune_options.lora_rnak": is not a key of these options; did you mean lora_rank?',
        ),
        (['tune_options={"learning_rate": 1}', "tune_learning_rate=1"], "tune_learning_rate is given as well"),
        (['tune_options={"lora_rank": "8"}'], "field \"tune_options.lora_rank\": '8' is not of type int"),
        (['tune_options={"lora_rank": 0}'], 'field "tune_lora_rank": 0 is refused'),
        (['tune_options={"seed": 3}'], 'field "tune_options.seed": is one value for all stages here; give run_seed'),
        (["tune_gpus="], 'field "tune_gpus": a cluster must be told how many GPUs a pod gets'),
        (["tune_batch_size=Infinity"], 'field "tune_batch_size": inf is not of type int'),
        (["tune_options=lora_rank"], "field \"tune_options\": 'lora_rank' is no JSON object"),
        (
            ['tune_options={"lora_rank": 8}', "tune_lora_rank=8"],
            'field "tune_options.lora_rank": tune_lora_rank is given as well',
        ),
    ],
)
def test_options_are_checked_before_anything_is_sent(
    server: Server, given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server, *given) == 2
    assert told in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.slow
def test_flat_names_and_options_are_the_same(server: Server) -> None:
    assert submit(server, "tune_lora_rank=64", "tune_lora_alpha=128", "run_precision=fp32") == 0
    # What has a parameter of its own may stand in the object too, as long as a command reads it.
    assert submit(server, 'tune_options={"learning_rate": 0.5}') == 0
    (request,) = server.asked("POST", "/runs")[1:]
    assert request.body["runtime_config"]["parameters"] == {"tune_learning_rate": 0.5}
    assert submit(server, 'tune_options={"lora_rank": 64, "lora_alpha": 128}', "run_precision=fp32") == 0
    first, _, second = (r.body["runtime_config"]["parameters"] for r in server.asked("POST", "/runs"))
    assert first == second
    assert first["tune_options"] == {"lora_rank": 64, "lora_alpha": 128, "precision": "fp32"}


def test_a_server_that_wants_to_know_who_asks_is_told_apart_from_one_that_is_away(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.login = (401, "no user identity header")
    assert main(["status", "--endpoint", server.url]) == 2
    message = capsys.readouterr().err
    assert 'field "--token-file": Kubeflow answers 401: no user identity header' in message
    assert message.count("\n") == 1


@pytest.mark.slow
def test_a_comparison_can_be_submitted(server: Server) -> None:
    assert submit(server, "compare_methods", "--variants", "read-out", "corpus_uri=s3://bucket/corpus") == 0
    specification = only(server.asked("POST", "/runs"))["pipeline_spec"]["pipeline_spec"]
    assert specification["pipelineInfo"]["name"] == "compare-methods"


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("mine_dept=3", "did you mean mine_depth?"),
        ("mine_depth=many", "is not of type int"),
        ("mine_depth=0", "greater than or equal to 1"),
        ("tune_method=best", "tune_method"),
        (f"corpus_uri={ROOT}", "directory of this machine"),
        ("index_shards_uri=/shards", "not seen by all pods"),
    ],
)
def test_nothing_reaches_the_cluster_when_a_parameter_is_wrong(
    server: Server, parameter: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(server, parameter) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("\n") == 1
    assert server.requests == []


def test_the_token_travels_in_the_header_alone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET + "\n")
    assert submit(server, "--token-file", str(token), *GIVEN) == 0
    assert all(request.headers["authorization"] == f"Bearer {SECRET}" for request in server.requests)
    assert SECRET not in json.dumps([request.body for request in server.requests])
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err


def test_what_the_cluster_refuses_is_told_in_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.refusal = (400, "the parameter corpus_uri is not good")
    assert submit(server, *GIVEN) == 2
    message = capsys.readouterr().err
    assert "400" in message
    assert "the parameter corpus_uri is not good" in message
    assert "--endpoint" not in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        (400, "Invalid input error: Namespace is empty", 'field "--namespace"'),
        (401, "Request header error: there is no user identity header", 'field "--token-file"'),
        (403, "User 'a' is not authorized with reason: no", 'field "--namespace"'),
        (409, "Already exist error: the run name is taken", 'field "--name"'),
        (500, "Failed to create a run: InternalServerError: the quota is used up\ngithub.com/stack.go:7", "the log of"),
        (503, "upstream connect error", "try again"),
    ],
)
def test_each_refusal_names_what_to_mend(
    server: Server, status: int, reason: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refusal = (status, reason)
    assert submit(server, *GIVEN) == 2
    message = capsys.readouterr().err
    assert told in message
    assert f"Kubeflow answers {status}: " in message
    assert reason.splitlines()[0].rsplit("Error: ", 1)[-1].removeprefix("Invalid input error: ") in message
    assert "stack.go" not in message
    assert "--endpoint" not in message
    assert message.count("\n") == 1


def schedule(server: Server, *arguments: str) -> int:
    published = "promote_uri=s3://bucket/published"
    return main(["schedule", "--endpoint", server.url, "--name", "nightly", *arguments, published])


@pytest.mark.slow
def test_a_schedule_is_enabled_typed_and_does_not_catch_up(server: Server) -> None:
    assert schedule(server, "--cron", "0 0 2 * * *", *GIVEN) == 0
    body = only(server.asked("POST", "/recurringruns"))
    assert body["mode"] == "ENABLE"
    assert body["no_catchup"] is True
    assert int(body["max_concurrency"]) == 1
    assert body["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert body["runtime_config"]["parameters"]["mine_depth"] == 50
    assert body["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "retrain"


def test_a_schedule_of_the_same_name_is_replaced_and_others_stay(server: Server) -> None:
    server.experiments["retrievers"] = "experiment-1"
    for job, name in (("a", "weekly"), ("b", "nightly"), ("c", "nightly")):
        server.recurring[job] = {"recurring_run_id": job, "display_name": name}
    assert schedule(server, "--every-seconds", "3600") == 0
    assert {job["display_name"] for job in server.recurring.values()} == {"weekly", "nightly"}
    assert {"b", "c"}.isdisjoint(server.recurring)
    assert len(server.recurring) == 2


def test_a_refused_schedule_leaves_the_old_one(server: Server) -> None:
    server.experiments["retrievers"] = "experiment-1"
    server.recurring["b"] = {"recurring_run_id": "b", "display_name": "nightly"}
    server.refusal = (400, "no")
    assert schedule(server, "--cron", "0 0 2 * * *") == 2
    assert set(server.recurring) == {"b"}


@pytest.mark.parametrize(
    ("trigger", "told"),
    [
        (["--cron", "0 2 * * *"], "has 5 fields; Kubeflow's cron has six"),
        ([], "no time to start a run is given"),
        (["--cron", "0 0 2 * * *", "--every-seconds", "9"], "--cron and --every-seconds are both given"),
        (["--every-seconds", "-5"], "an interval is at least one second"),
        (["--every-seconds", "60", "--name", " "], "a schedule needs a name"),
        (["--every-seconds", "60", "--list"], 'field "--name": does not go with --list'),
        (["--remove", "nightly"], 'field "--name": does not go with --remove'),
    ],
)
def test_a_schedule_that_kubeflow_would_misread_is_refused(
    server: Server, trigger: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schedule(server, *trigger) == 2
    assert told in capsys.readouterr().err
    assert server.requests == []


def kept_schedules(server: Server) -> None:
    server.experiments["retrievers"] = "experiment-1"
    cron = {"cron_schedule": {"cron": "0 0 2 * * *"}}
    every = {"periodic_schedule": {"interval_second": "3600"}}
    for job, name, trigger, status in (
        ("a", "weekly", every, "DISABLED"),
        ("b", "nightly", cron, "ENABLED"),
        ("c", "nightly", cron, "ENABLED"),
    ):
        server.recurring[job] = {"recurring_run_id": job, "display_name": name, "trigger": trigger, "status": status}


def test_schedules_are_listed(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    kept_schedules(server)
    assert main(["schedule", "--endpoint", server.url, "--list"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["a", "disabled", "every", "1h00m", "weekly"]
    assert lines[1] == ["b", "enabled", "cron", '"0', "0", "2", "*", "*", '*"', "nightly"]
    assert main(["schedule", "--endpoint", server.url, "--list", "--experiment", "of-nobody"]) == 0
    assert capsys.readouterr().out == ""
    assert "of-nobody" not in server.experiments


def test_a_schedule_is_removed_by_name_and_an_unknown_name_is_refused(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    kept_schedules(server)
    remove = ["schedule", "--endpoint", server.url, "--remove", "nightly"]
    assert main(remove) == 0
    assert set(server.recurring) == {"a"}
    assert main(remove) == 2
    message = capsys.readouterr().err
    assert "no schedule is called 'nightly'" in message
    assert message.strip().endswith("weekly")
    assert set(server.recurring) == {"a"}


@pytest.mark.slow
def test_kfps_own_command_of_the_readme_sends_what_the_api_expects(server: Server, tmp_path: Path) -> None:
    assert main(["compile", "--output", str(tmp_path / "train_retriever.yaml")]) == 0
    readme = (ROOT / "README.md").read_text()
    (line,) = [line for line in readme.splitlines() if line.startswith("kfp run create")]
    program = Path(sys.executable).with_name("kfp")
    assert program.exists() or shutil.which("kfp")
    arguments = line.replace("build/train_retriever.yaml", str(tmp_path / "train_retriever.yaml")).split()[1:]
    environment = {**os.environ, "KF_PIPELINES_ENDPOINT": server.url}
    done = subprocess.run([str(program), *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    body = only(server.asked("POST", "/runs"))
    sent = body["runtime_config"]["parameters"]
    assert sent == {"corpus_uri": "s3://my-bucket/corpus", "backbone": "s3://my-bucket/llama"}
