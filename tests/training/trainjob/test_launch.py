"""A step whose training is a TrainJob: staged, created, followed, taken over and removed, however it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.errors import InputError
from llm_retriever.stores.opening import open_store, publish
from llm_retriever.training.trainjob.launch import launch_on_nodes
from llm_retriever.training.trainjob.nodes import Nodes
from llm_retriever.training.trainjob.pods import TROUBLES
from tests.training.trainjob.api_server import JOBS, PODS, Cluster, Moment, condition, container, pod

ROOT = Path(__file__).parents[3]
NODES = Nodes(2, 4, "8", "64Gi", "nvidia.com/gpu", "registry.example/team/gpu@sha256:1", "torch-distributed", "", {})
COMPLETE, FAILED = [condition("Complete")], [condition("Failed", "JobSetFailed", "jobset failed due to a failed job")]


@pytest.fixture
def job(tmp_path, s3) -> dict[str, Any]:
    inputs = tmp_path / "model"
    inputs.mkdir()
    (inputs / "weights").write_text("w" * 100)
    (tmp_path / "draft").mkdir()
    run = {"title": "tune llm-ql", "mirror": f"s3://{s3.bucket}/checkpoints/key", "checkpoints": "/here/alone"}
    return {
        "settings": {"seed": 17},
        "run": run,
        "paths": {"adapted": str(inputs)},
        "draft": str(tmp_path / "draft"),
        "log": str(tmp_path / "log.json"),
    }


@pytest.fixture
def trains(cluster, job, tmp_path):
    """The cluster, in which a TrainJob leaves its result as soon as it is created."""
    result = tmp_path / "made"
    (result / "draft" / "model").mkdir(parents=True)
    (result / "draft" / "model" / "weights").write_text("trained")
    (result / "log.json").write_text('{"steps": []}')
    cluster.created = lambda made: publish(result, f"{job['run']['mirror']}/trainjob/result")
    return cluster


def only(jobs: dict[str, Any]) -> dict[str, Any]:
    (job,) = jobs.values()
    return job


def launched(job: dict[str, Any], nodes: Nodes = NODES) -> None:
    launch_on_nodes("llm_retriever.contrastive.tuning", job, nodes)


def test_what_the_nodes_made_is_taken_over_and_the_trainjob_removed(trains, job, tmp_path):
    launched(job)
    assert (tmp_path / "draft" / "model" / "weights").read_text() == "trained"
    assert json.loads((tmp_path / "log.json").read_text()) == {"steps": []}
    (created,) = trains.asked("POST", JOBS)
    assert created.query["fieldValidation"] == "Strict"
    (deleted,) = [request for request in trains.requests if request.method == "DELETE"]
    assert deleted.path == f"{JOBS}/{created.body['metadata']['name']}"
    assert deleted.query["propagationPolicy"] == "Foreground"
    assert not trains.jobs


def test_inputs_are_staged_by_content_once_and_the_task_names_them(trains, job, s3):
    launched(job)
    bucket = open_store(f"s3://{s3.bucket}/checkpoints")
    task = json.loads(bucket.read("key/trainjob/task.json"))
    staged = task["inputs"]["adapted"].removeprefix(f"s3://{s3.bucket}/checkpoints/")
    assert bucket.read(f"{staged}/weights") == b"w" * 100
    assert task["module"] == "llm_retriever.contrastive.tuning"
    assert "checkpoints" not in task["run"]
    bucket.delete("key")
    s3.requests.clear()
    launched(job)
    assert not [path for method, path in s3.requests if method in ("PUT", "POST") and "/staged/" in path]


def test_what_a_lifecycle_rule_has_removed_of_the_staged_inputs_is_sent_again(trains, job, s3):
    launched(job)
    bucket = open_store(f"s3://{s3.bucket}/checkpoints")
    (weights,) = [entry.key for entry in bucket.list("staged") if entry.key.endswith("/weights")]
    bucket.delete(weights)
    bucket.delete("key")
    launched(job)
    assert bucket.read(weights) == b"w" * 100


def test_a_result_that_is_there_already_is_taken_without_asking_the_cluster(trains, job, tmp_path):
    trains.created(None)
    launched(job)
    assert (tmp_path / "draft" / "model" / "weights").read_text() == "trained"
    assert not trains.requests


def test_the_first_node_is_heard_line_by_line_and_once(trains, job, capfd):
    lines = [f"2026-01-02T03:04:0{i}.000000001Z tune: {i} pairs" for i in range(4)]
    first, second = pod("train-node-0-0", 0), pod("train-node-0-1", 1)
    trains.moments = [
        Moment(pods=[second]),
        Moment(pods=[first, second]),
        Moment(pods=[first, second], logs={"train-node-0-0": "\n".join(lines[:2])}),
        Moment(pods=[first, second], logs={"train-node-0-0": "\n".join(lines[1:4])}),
        Moment(COMPLETE, pods=[first, second], logs={"train-node-0-0": "\n".join(lines[2:])}),
    ]
    launched(job)
    assert capfd.readouterr().out.splitlines() == [f"tune: {i} pairs" for i in range(4)]
    reads = trains.asked("GET", f"{PODS}/train-node-0-0/log")
    assert "sinceSeconds" not in reads[1].query
    assert int(reads[-1].query["sinceSeconds"]) >= 10


def test_a_failure_tells_the_end_of_the_failed_pods_log_and_removes_the_trainjob(trains, job):
    ended = {"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T03:05:00Z"}}
    later = {"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T03:05:09Z"}}
    trains.created = lambda made: None
    trains.moments = [
        Moment(),
        Moment(
            FAILED,
            [pod("n-0", 0, container(state=later)), pod("n-1", 1, container(state=ended))],
            {"n-0": "connection closed by peer", "n-1": "ArithmeticError: no such luck"},
        ),
    ]
    with pytest.raises(RuntimeError) as caught:
        launched(job)
    text = str(caught.value)
    assert "failed (JobSetFailed: jobset failed due to a failed job)" in text
    assert text.endswith("the end of the log of n-1:\nArithmeticError: no such luck")
    assert trains.asked("GET", f"{PODS}/n-1/log")[0].query["tailLines"] == "30"
    assert not trains.jobs


def test_a_pod_that_was_started_again_is_quoted_from_before(trains, job):
    ended = {"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T03:05:00Z"}}
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    status = container(state=waiting, lastState=ended, restartCount=3)
    trains.moments = [Moment(FAILED, [pod("n-1", 1, status)], {"n-1.previous": "the cause"})]
    with pytest.raises(RuntimeError, match=r"the end of the log of n-1:\nthe cause"):
        launched(job)


def test_where_the_pods_are_gone_what_a_node_left_in_the_store_is_told(trains, job):
    place = open_store(f"{job['run']['mirror']}/trainjob")
    trains.created = lambda made: place.write("failures/1.txt", b"node 1: RuntimeError: lost\n")
    trains.moments = [Moment(FAILED)]
    with pytest.raises(RuntimeError, match=r"node 1: RuntimeError: lost$"):
        launched(job)


def test_bad_input_in_a_node_is_bad_input_here_before_it_is_tried_again(trains, job):
    place = open_store(f"{job['run']['mirror']}/trainjob")
    told = {"problem": "the text is empty", "file": "corpus.jsonl", "line": 17, "field": "text", "hint": "give one"}
    trains.created = lambda made: place.write("refusal.json", json.dumps(told).encode())
    ended = {"terminated": {"exitCode": 2, "finishedAt": "2026-01-02T03:05:00Z"}}
    trains.moments = [Moment(pods=[pod("n-0", 0, container(lastState=ended, restartCount=1))])]
    with pytest.raises(InputError) as caught:
        launched(job)
    assert str(caught.value) == 'corpus.jsonl:17: field "text": the text is empty; give one'
    assert not trains.jobs


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            container(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}),
            'field "node_image": node 1: its image cannot be pulled (Back-off pulling image); correct the image '
            "(run_gpu_image, where the pipeline is submitted), or the pull secrets",
        ),
        (
            container(
                state={"running": {}},
                lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}},
                restartCount=1,
            ),
            'field "node_memory": node 1: it ran out of memory; raise it (in a pipeline\'s form adapt_node_memory, '
            "tune_node_memory), or lower micro_batch_size",
        ),
    ],
)
def test_a_node_that_cannot_run_ends_the_step_and_names_the_setting(status, message, trains, job, monkeypatch):
    monkeypatch.setitem(TROUBLES, "ImagePullBackOff", TROUBLES["ImagePullBackOff"]._replace(patience=0.1))
    trains.moments = [Moment(pods=[pod("n-0", 0), pod("n-1", 1, status)])]
    with pytest.raises(InputError) as caught:
        launched(job)
    assert str(caught.value) == message
    assert not trains.jobs


def test_a_node_that_fails_ends_the_training_for_all(trains, job):
    ended = {"terminated": {"exitCode": 1, "finishedAt": "2026-01-02T03:05:00Z"}}
    trains.moments = [Moment(pods=[pod("n-0", 0), pod("n-1", 1, container(state=ended))], logs={"n-1": "lost it"})]
    with pytest.raises(RuntimeError, match=r"node 1 ended with exit code 1; the end of the log of n-1:\nlost it"):
        launched(job)
    assert not trains.jobs


def test_a_node_that_is_replaced_ends_the_training_and_a_whole_new_start_does_not(trains, job):
    def moment(*names: str) -> Moment:
        return Moment(pods=[pod(name, index) for index, name in enumerate(names)])

    leaving = pod("b-1", 1, container(state={"terminated": {"exitCode": 143}}))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-02T03:05:00Z"
    stopped = Moment([condition("Suspended")], pods=[leaving])
    trains.moments = [moment("a-0", "a-1"), moment("b-0", "b-1"), stopped, moment("c-0", "c-1"), moment("c-0", "d-1")]
    with pytest.raises(RuntimeError, match="node 1 was lost"):
        launched(job)
    assert len(trains.moments) == 1


def test_what_heals_is_only_told_once(trains, job, capfd):
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    pulling = container(state={"waiting": {"reason": "ErrImagePull", "message": "timeout"}})
    waiting = [pod("n-0", 0, {"phase": "Pending", "conditions": [full]}), pod("n-1", 1, pulling)]
    queued = [condition("Suspended", "Suspended", "TrainJob is suspended")]
    trains.moments = [Moment(queued), *[Moment(pods=waiting)] * 3, Moment(COMPLETE)]
    launched(job)
    told = capfd.readouterr().err.splitlines()
    assert sum("waits: TrainJob is suspended" in line for line in told) == 1
    assert told.count("node 0: no machine has room for it yet (0/3 nodes are available)") == 1
    assert told.count("node 1: its image cannot be pulled (timeout)") == 1


def test_an_api_that_is_away_for_a_while_does_not_end_the_training(trains, job, tmp_path, capfd):
    trains.broken = 12
    launched(job)
    assert (tmp_path / "draft" / "model" / "weights").read_text() == "trained"
    assert "the Kubernetes API does not answer: the apiserver is restarting" in capfd.readouterr().err


def test_a_trainjob_that_someone_deletes_is_a_failure(trains, job):
    trains.moments = [Moment(), Moment(gone=True)]
    with pytest.raises(RuntimeError, match="was deleted by someone else"):
        launched(job)


def test_an_end_without_a_result_is_a_failure(cluster, job):
    with pytest.raises(RuntimeError, match=r"the training ended, but its result is not at s3://"):
        launched(job)


@pytest.mark.parametrize(
    ("status", "said", "hint"),
    [
        (
            403,
            "trainjobs is forbidden",
            "give the step's account the role llm-retriever-train-jobs of manifests/base/rbac.yaml",
        ),
        (422, "spec.trainer.env: reserved", "correct the setting that the message names"),
    ],
)
def test_a_refused_creation_is_told_in_the_clusters_words(status, said, hint, cluster, job):
    cluster.refusal = (status, said)
    with pytest.raises(InputError) as caught:
        launched(job)
    assert str(caught.value) == f'field "nodes": the cluster refuses the TrainJob: {said}; {hint}'


def test_without_a_cluster_the_step_says_so(job, tmp_path, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r'"nodes": several nodes need a cluster'):
        launched(job)


def own_pod(name: str) -> dict[str, Any]:
    spec = {
        "serviceAccountName": "pipeline-runner",
        "nodeSelector": {"pool": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}, {"key": "node.kubernetes.io/not-ready"}],
        "containers": [{"name": "wait", "image": "argo"}, {"name": "main", "image": "registry.example/own@sha256:2"}],
    }
    return {"metadata": {"name": name, "uid": f"uid-of-{name}"}, "spec": spec}


def test_the_nodes_have_image_account_and_place_of_the_steps_own_pod_and_go_with_it(trains, job, monkeypatch):
    monkeypatch.setenv("KFP_POD_NAME", "train-1-pod")
    trains.own = own_pod("train-1-pod")
    launched(job, dataclasses.replace(NODES, image=""))
    made = trains.asked("POST", JOBS)[0].body
    assert made["spec"]["trainer"]["image"] == "registry.example/own@sha256:2"
    (owner,) = made["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "v1", "kind": "Pod", "name": "train-1-pod", "uid": "uid-of-train-1-pod"}
    (group,) = made["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    spec = group["template"]["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "pipeline-runner"
    assert spec["nodeSelector"] == {"pool": "a100"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists"}]


def test_a_step_that_knows_no_image_says_so(cluster, job):
    with pytest.raises(InputError, match=r'"node_image": the step does not know its own image'):
        launched(job, dataclasses.replace(NODES, image=""))


def test_a_retry_follows_the_trainjob_that_is_under_way_and_takes_it_over(trains, job, monkeypatch):
    monkeypatch.setenv("POD_NAME", "first-pod")
    trains.own = own_pod("first-pod")
    launched(job)
    running = trains.asked("POST", JOBS)[0].body
    # As if that pod had vanished while the nodes trained; they send their result before they end.
    open_store(job["run"]["mirror"]).delete("trainjob/result")
    trains.jobs[running["metadata"]["name"]] = running
    trains.moments = [Moment(), Moment(COMPLETE)]
    trains.deleted = lambda name, publish=trains.created: publish({})
    trains.requests.clear()
    monkeypatch.setenv("POD_NAME", "second-pod")
    trains.own = own_pod("second-pod")
    launched(job)
    assert not trains.asked("POST", JOBS)
    path = f"{JOBS}/{running['metadata']['name']}"
    (owner,) = trains.asked("PATCH", path)[0].body["metadata"]["ownerReferences"]
    assert owner["uid"] == "uid-of-second-pod"
    assert trains.asked("DELETE", path)


def test_after_a_failure_the_next_attempt_has_a_name_of_its_own(trains, job):
    launched(job)
    failed = trains.asked("POST", JOBS)[0].body | {"status": {"conditions": FAILED}}
    name = failed["metadata"]["name"]
    assert name.endswith("-1")
    open_store(job["run"]["mirror"]).delete("trainjob")
    trains.jobs[name] = failed
    trains.requests.clear()
    launched(job)
    order = [(r.method, r.path) for r in trains.requests if r.method in ("DELETE", "POST")]
    assert order[:2] == [("DELETE", f"{JOBS}/{name}"), ("POST", JOBS)]
    assert trains.asked("POST", JOBS)[0].body["metadata"]["name"] == f"{name[:-1]}2"


STEP = """
import json, sys
from components.entrypoint import _stop
import signal
from llm_retriever.training.trainjob import follow
from llm_retriever.training.trainjob.launch import launch_on_nodes
from tests.training.trainjob.test_launch import NODES
signal.signal(signal.SIGTERM, _stop)
follow.POLL_SECONDS = 0.02
launch_on_nodes("llm_retriever.contrastive.tuning", json.loads(sys.argv[1]), NODES)
"""


def test_sigterm_removes_the_trainjob_and_ends_the_step_with_143(cluster: Cluster, job):
    cluster.moments = [Moment()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    step = subprocess.Popen([sys.executable, "-c", STEP, json.dumps(job)], env=environment, cwd=ROOT)
    deadline = time.monotonic() + 60
    while not any(request.method == "GET" and request.path.startswith(f"{JOBS}/") for request in cluster.requests):
        assert step.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(cluster.jobs) == 1
    step.send_signal(signal.SIGTERM)
    assert step.wait(60) == 128 + signal.SIGTERM
    assert not cluster.jobs
