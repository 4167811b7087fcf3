"""What `status` and `--wait` say of runs as Kubeflow 2.17 records them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_retriever.progress import seconds_as_text
from pipelines import following
from pipelines.__main__ import main
from pipelines.compilation import compile_pipeline
from pipelines.planned_tasks import planned_tasks
from tests.pipelines.api_server import Moment, Server, serving
from tests.pipelines.argo_runs import START, STEP_SECONDS, ArgoRun
from tests.s3_server import S3Server

IN_PARTS = (
    "fingerprint-sources",
    "prepare-corpus",
    "fetch-backbone",
    "mine-negatives",
    "adapt-backbone",
    "tune-retriever",
    "encode-corpus",
    "build-index",
    "evaluate",
    "promote",
)
STEPS = tuple(step for step in IN_PARTS if step != "encode-corpus")
COMPLAINT = 'tune_retriever: /s3/models/negatives.jsonl:17: field "negatives": is empty; mine again'
LOG = f"train: 100/200 (50%) steps, 2.0/s, 50s left\n{COMPLAINT}\n"
KLOG = "I0821 14:03:07.123456       1 launcher_v2.go:160] publish success.\n"
TOOK = seconds_as_text(STEP_SECONDS)


def compiled(pipeline: Any, folder: Path) -> dict[str, Any]:
    text = compile_pipeline(pipeline, folder / "pipeline.yaml").read_text()
    return dict(next(yaml.safe_load_all(text)))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from pipelines.train_retriever import train_retriever

    return compiled(train_retriever, tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same with a loop, whose steps encode the corpus."""
    from pipelines.train_retriever import train_retriever_of

    return compiled(train_retriever_of(parts=3), tmp_path_factory.mktemp("in-parts"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from pipelines import variants
    from pipelines.comparison import comparison_of

    chosen = variants.load("read-out").variants
    return compiled(comparison_of(chosen), tmp_path_factory.mktemp("comparison"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    with serving() as running:
        yield running


def keep(server: Server, run: ArgoRun, **more: Any) -> None:
    server.runs.setdefault(run.id, []).append(Moment(run.answer(**more), run.manifest()))


def status(server: Server, *arguments: str) -> int:
    return main(["status", "--endpoint", server.url, *arguments])


def rows(printed: str) -> dict[str, str]:
    """State and what follows it, by the task's name, in the order of the lines."""
    lines = [line.strip().split("  ") for line in printed.splitlines() if line.startswith("  ")]
    words = [[word.strip() for word in line if word.strip()] for line in lines]
    return {row[0]: " ".join(row[1:]) for row in words if row[0].split(" [")[0] in IN_PARTS}


def put(s3: S3Server, uri: str, text: str) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key=uri.removeprefix(f"s3://{s3.bucket}/"), Body=text.encode())


@pytest.mark.parametrize("retried", [True, False])
@pytest.mark.parametrize("serves_v1", [True, False])
def test_a_run_is_one_line_a_task_in_the_pipelines_order(
    server: Server, training: dict[str, Any], serves_v1: bool, retried: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {}, retried=retried)
    keep(server, run)
    server.serves_v1 = serves_v1
    assert status(server, run.id) == 0
    printed = capsys.readouterr().out
    assert rows(printed) == dict.fromkeys(STEPS, f"done {TOOK}")
    assert list(rows(printed)) == [task.label for task in planned_tasks(training)]
    assert printed.splitlines()[0] == "train_retriever 2026-01-02 03:04:05, started 2026-01-02 03:04 UTC"
    assert printed.splitlines()[-1].startswith("succeeded after")
    assert len(printed.splitlines()) == len(STEPS) + 2


@pytest.mark.parametrize("serves_v1", [True, False])
def test_what_came_from_the_cache_is_called_cached(
    server: Server, in_parts: dict[str, Any], serves_v1: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(in_parts, dict.fromkeys(IN_PARTS, "cached") | {"for-loop-2": ["cached"] * 3})
    keep(server, run)
    server.serves_v1 = serves_v1
    assert status(server, run.id) == 0
    labels = [f"{step} [3/3]" if step == "encode-corpus" else step for step in IN_PARTS]
    assert rows(capsys.readouterr().out) == dict.fromkeys(labels, "cached")


def test_a_loop_counts_and_a_waiting_pod_says_why(
    server: Server, in_parts: dict[str, Any], training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    keep(server, ArgoRun(in_parts, {"for-loop-2": ["done", "cached", "running"]}, id="loop", counted=4))
    short = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    keep(server, ArgoRun(training, {"tune-retriever": "pending"}, id="pod", messages={"tune-retriever": short}))
    assert status(server, "loop") == 0
    shown = rows(capsys.readouterr().out)
    assert shown["encode-corpus [2/4]"].startswith("running")
    assert shown["build-index"] == "waiting"
    assert status(server, "pod") == 0
    shown = rows(capsys.readouterr().out)
    assert shown["tune-retriever"].startswith("waiting")
    assert shown["tune-retriever"].endswith(short)


def test_tasks_of_the_same_name_are_told_apart(
    server: Server, comparison: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(comparison, {"run-variant-2": "failed"}, name="compare-methods-q9")
    keep(server, run)
    assert status(server, run.id) == 1
    printed = capsys.readouterr().out
    labels = [task.label for task in planned_tasks(comparison)]
    assert len(set(labels)) == len(labels)
    states = {label: next(ln for ln in printed.splitlines() if ln.startswith(f"  {label} ")) for label in labels}
    (failed,) = [label for label, line in states.items() if line.split("  ")[-2:] and " failed " in line]
    assert failed.startswith("run-variant: ")
    assert len([label for label in labels if label.startswith("run-variant: ")]) == 3
    assert [label for label, line in states.items() if "not started" in line] == ["compare"]


def test_a_failure_shows_the_steps_own_line_from_the_store_and_where_the_rest_is(
    server: Server, s3: S3Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {"tune-retriever": "failed"})
    keep(server, run)
    put(s3, run.logs["tune-retriever"], LOG)
    assert status(server, run.id) == 1
    printed = capsys.readouterr().out
    assert rows(printed)["tune-retriever"] == f"failed {TOOK}"
    assert rows(printed)["evaluate"] == "not started"
    pod = run.pods["tune-retriever"]
    assert printed.splitlines()[-4:] == [
        "tune-retriever failed:",
        f"  {COMPLAINT}",
        f"  all of it: kubectl logs -n retrievers {pod} -c main",
        f"  all of it: {run.logs['tune-retriever']}",
    ]
    assert "Error (exit code 2)" not in printed


def test_a_failure_shows_the_steps_own_line_from_the_pods_log(
    server: Server, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {"tune-retriever": "failed"}, root="minio://mlpipeline/v2/artifacts")
    keep(server, run)
    server.logs[run.pods["tune-retriever"]] = f"{KLOG}{LOG}{KLOG}"
    assert status(server, run.id) == 1
    printed = capsys.readouterr().out
    assert f"  {COMPLAINT}\n" in printed
    assert f"  all of it: {run.logs['tune-retriever'].removesuffix('-0')}" in printed


def test_a_log_that_cannot_be_read_is_said_to_lie_where_it_lies(
    server: Server, s3: S3Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    message = "OOMKilled (exit code 137)"
    run = ArgoRun(training, {"tune-retriever": "failed"}, messages={"tune-retriever": message})
    keep(server, run)
    s3.fault = lambda environ: ("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
    assert status(server, run.id) == 1
    printed = capsys.readouterr().out
    assert f"  {message}\n" in printed
    assert f"  all of it: {run.logs['tune-retriever'].removesuffix('-0')} (not read: " in printed
    assert "access is refused" in printed


def test_a_failure_is_found_below_the_pipeline_root_where_the_api_names_no_pods(
    server: Server, s3: S3Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {"tune-retriever": "failed"})
    keep(server, run, runtime_config={"parameters": {}})
    server.serves_v1 = False
    put(s3, run.logs["tune-retriever"], LOG)
    assert status(server, run.id) == 1
    assert "  its log lies below the pipeline root: give --pipeline-root URI\n" in capsys.readouterr().out
    assert status(server, run.id, "--pipeline-root", run.root) == 1
    assert f"  {COMPLAINT}\n  all of it: {run.logs['tune-retriever']}\n" in capsys.readouterr().out


def test_a_driver_that_failed_is_said_to_be_one(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {"mine-negatives": "driver failed"})
    keep(server, run)
    server.logs[run.pods["mine-negatives"]] = (
        "F0821 14:03:07.123456       1 main.go:79] KFP driver: type mismatch: expect NUMBER_INTEGER, got string\n"
    )
    assert status(server, run.id) == 1
    printed = capsys.readouterr().out
    assert "mine-negatives, its driver failed:\n  KFP driver: type mismatch: expect NUMBER_INTEGER" in printed


def lost(training: dict[str, Any], outcomes: dict[str, Any]) -> tuple[ArgoRun, dict[str, Any]]:
    """A run that has ended, and the API's last list of its tasks, from before Argo packed them."""
    before = ArgoRun(training, {"evaluate": "driver pending", "promote": "absent"})
    run = ArgoRun(training, outcomes)
    return run, run.answer(run_details={"task_details": before.task_details()})


def test_a_list_of_tasks_that_the_server_lost_is_read_from_argos_packed_one(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, answer = lost(training, {"promote": "cached"})
    server.runs[run.id] = [Moment(answer, run.manifest(compressed=True))]
    assert status(server, run.id) == 0
    printed = capsys.readouterr().out
    assert rows(printed)["evaluate"] == f"done {TOOK}"
    assert rows(printed)["promote"] == "cached"
    (note,) = [line for line in printed.splitlines() if line.startswith("note: ")]
    assert "above 1 MiB" in note


def test_a_list_of_tasks_that_is_nowhere_is_pieced_together_from_the_artifacts(
    server: Server, s3: S3Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run, answer = lost(training, {})
    server.runs[run.id], server.serves_v1 = [Moment(answer)], False
    place = f"{run.root}/{training['pipelineInfo']['name']}/{run.id}"
    put(s3, f"{place}/evaluate/6f1c/report", "<html>")
    put(s3, f"{place}/promote/77aa/executor-logs-0", "")
    assert status(server, run.id) == 0
    printed = capsys.readouterr().out
    assert rows(printed)["build-index"] == f"done {TOOK}"
    assert rows(printed)["evaluate"] == "done has outputs"
    assert rows(printed)["promote"] == "unknown no outputs of its own"
    assert f"what is said of them is what lies in {place}\n" in printed
    s3.fault = lambda environ: ("403 Forbidden", b"<Error><Code>AccessDenied</Code></Error>")
    assert status(server, run.id) == 0
    printed = capsys.readouterr().out
    assert rows(printed)["evaluate"] == "unknown"
    assert "their outputs cannot be seen" in printed


def test_a_run_of_a_pipeline_that_was_uploaded_has_its_order_from_there(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {})
    reference = {"pipeline_id": "pipeline-1", "pipeline_version_id": "version-1"}
    keep(server, run, pipeline_spec=None, pipeline_version_reference=reference)
    assert status(server, run.id) == 0  # the version is gone: by the order in which they ran
    assert set(rows(capsys.readouterr().out)) == set(STEPS)
    server.pipelines["pipeline-1"] = "train-retriever"
    server._add_version("pipeline-1", "v1", [training, {"platforms": {}}])
    assert status(server, run.id) == 0
    assert list(rows(capsys.readouterr().out)) == list(STEPS)


def test_a_run_is_followed_by_its_changes_to_its_end(
    server: Server, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "PROGRESS_SECONDS", 0.0)
    for outcome in ("running", "running", "failed"):
        run = ArgoRun(training, {"tune-retriever": outcome})
        keep(server, run)
        server.logs[run.pods["tune-retriever"]] = f"{KLOG}train: 100/200 (50%) steps, 2.0/s, 50s left\n"
    assert status(server, run.id, "--wait") == 1
    printed = capsys.readouterr().out
    news = printed.split("\n\n")[0] if "\n\n" in printed else printed
    told = [line.split() for line in news.splitlines() if "tune-retriever " in line]
    assert [words[1] for words in told[:3]] == ["running", "running", "failed"]
    assert " ".join(told[1][3:]) == "train: 100/200 (50%) steps, 2.0/s, 50s left"
    assert sum(line.startswith("  prepare-corpus ") for line in printed.splitlines()) == 2  # as news, and at the end
    assert "tune-retriever failed:" in printed


def test_a_submitted_run_is_waited_for(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for outcomes in ({"prepare-corpus": "running"}, {}):
        keep(server, ArgoRun(training, outcomes, id="run-1"))
    assert main(["submit", "--endpoint", server.url, "--wait", "corpus_uri=s3://bucket/corpus"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "run-1"
    assert printed.splitlines()[-1].startswith("succeeded after")


def test_a_server_that_is_away_for_a_while_is_asked_again(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training)
    keep(server, run)
    server.outages = [503, 502, 429]
    assert status(server, run.id, "--wait") == 0
    printed = capsys.readouterr()
    assert printed.err.count("the run goes on, asking again") == 3
    assert "503" in printed.err
    assert printed.out.splitlines()[-1].startswith("succeeded")
    server.outages = [503]
    assert status(server, run.id) == 2
    assert "try again" in capsys.readouterr().err


def test_a_server_that_stays_away_is_given_up(
    server: Server, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.05)
    server.outages = [503] * 1000
    assert status(server, "run-1", "--wait") == 2
    assert "Kubeflow answers 503" in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_ends_the_watching_and_says_that_the_run_goes_on(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training, {"tune-retriever": "running"})
    keep(server, run)
    timer = threading.Timer(1.0, signal.raise_signal, [signal.SIGINT])
    timer.start()
    assert status(server, run.id, "--wait") == 130
    assert f"the run goes on: llm-retriever status {run.id} --wait" in capsys.readouterr().err


def test_a_run_that_is_not_there_is_said_not_to_be(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["nope"], ["nope", "--wait"]):
        assert status(server, *arguments) == 2
        message = capsys.readouterr().err
        assert message == ('pipelines: field "RUN": no such run nope; llm-retriever status lists the latest ones\n')
    assert status(server, "--wait") == 2
    assert 'field "RUN"' in capsys.readouterr().err


def test_an_address_at_which_something_else_answers_is_said_to_be_wrong(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ArgoRun(training)
    keep(server, run)
    assert main(["status", "--endpoint", f"{server.url}/elsewhere", run.id]) == 2
    message = capsys.readouterr().err
    assert 'field "--endpoint": no Pipelines API answers here (404)' in message


def test_the_latest_runs_are_listed_with_the_schedules_that_started_them(
    server: Server, training: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    server.recurring["job-1"] = {"recurring_run_id": "job-1", "display_name": "nightly"}
    keep(server, ArgoRun(training, id="one"), display_name="nightlyq677d-1-2318457", recurring_run_id="job-1")
    keep(server, ArgoRun(training, id="two"), display_name="nightlyq677d-2-77", recurring_run_id="job-1")
    keep(server, ArgoRun(training, {"evaluate": "running"}, id="three"), display_name="by hand")
    keep(server, ArgoRun(training, id="four"), display_name="weeklyxx-1-7", recurring_run_id="job-0")
    assert status(server) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    words = [[word.strip() for word in line if word] for line in lines]
    took = seconds_as_text(ArgoRun(training).now - START)
    assert words[0] == ["one", "succeeded", "2026-01-02 03:04 UTC", took, "nightlyq677d-1-2318457 (schedule nightly)"]
    assert words[2][1] == "running"
    assert words[2][-1] == "by hand"
    assert words[3][-1] == "weeklyxx-1-7 (schedule job-0, removed since)"
    assert len(server.asked("GET", "/recurringruns/job-1")) == 1
    assert status(server, "one") == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(", by the schedule nightly")
