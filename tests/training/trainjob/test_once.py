"""What trains to one place is one training: never two at once, and never ended by an error that is not its own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from llm_retriever.processes.crashes import ProcessFailedError
from llm_retriever.stores.opening import open_store
from llm_retriever.training.trainjob import follow
from llm_retriever.training.trainjob.manifest import ASKED
from tests.s3_server import REFUSED
from tests.training.trainjob.api_server import JOBS, PODS, Cluster, Moment, Request, condition, container, pod
from tests.training.trainjob.test_launch import COMPLETE, NODES, job, launched, own_pod, trains

__all__ = ["job", "trains"]


def under_way(trains: Cluster, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, place: dict[str, Any]) -> str:
    """Name of a TrainJob that a step's first pod, in this place of the cluster, has made and left behind."""
    monkeypatch.setenv("POD_NAME", "first-pod")
    trains.own = own_pod("first-pod")
    trains.own["spec"] |= place
    launched(job)
    running = trains.asked("POST", JOBS)[0].body
    open_store(job["run"]["mirror"]).delete("trainjob/result")
    trains.jobs[running["metadata"]["name"]] = running
    trains.moments = [Moment(), Moment(), Moment(COMPLETE)]
    trains.deleted = lambda name, publish=trains.created: publish({})
    trains.requests.clear()
    monkeypatch.setenv("POD_NAME", "second-pod")
    trains.own = own_pod("second-pod")
    return str(running["metadata"]["name"])


def changes(trains: Cluster) -> list[tuple[str, str]]:
    return [(r.method, r.path) for r in trains.requests if r.method != "GET"]


def test_a_retry_that_the_queue_admits_elsewhere_follows_the_training_that_runs(trains, job, monkeypatch):
    name = under_way(trains, job, monkeypatch, {"nodeSelector": {"pool": "spot"}, "tolerations": [{"key": "spot"}]})
    launched(job)
    assert changes(trains) == [("PATCH", f"{JOBS}/{name}"), ("DELETE", f"{JOBS}/{name}")]


def test_the_same_training_on_other_nodes_begins_when_the_pods_of_the_one_that_runs_have_ended(
    trains, job, monkeypatch
):
    name = under_way(trains, job, monkeypatch, {})
    left = dict(trains.jobs[name])
    shown = []

    def heard(request: Request) -> None:
        """A deleted TrainJob is still shown, for as long as its pods save a checkpoint."""
        if (request.method, request.path) == ("GET", JOBS) and ("DELETE", f"{JOBS}/{name}") in changes(trains):
            shown.append(request)
            trains.jobs[name] = left | {"metadata": left["metadata"] | {"deletionTimestamp": "2026-01-02T03:05:00Z"}}
            if len(shown) == 3:
                trains.jobs.pop(name)

    trains.heard = heard
    launched(job, dataclasses.replace(NODES, memory="128Gi"))
    second = trains.asked("POST", JOBS)[0].body["metadata"]
    assert changes(trains)[:2] == [("DELETE", f"{JOBS}/{name}"), ("POST", JOBS)]
    assert len(shown) == 3
    assert second["name"] == f"{name[:-1]}2"
    assert second["labels"]["llm-retriever/training"] == left["metadata"]["labels"]["llm-retriever/training"]
    assert second["annotations"][ASKED] != left["metadata"]["annotations"][ASKED]


def test_a_trainjob_that_another_step_makes_at_the_same_time_is_followed(trains, job, tmp_path):
    launched(job)
    made = trains.asked("POST", JOBS)[0].body
    open_store(job["run"]["mirror"]).delete("trainjob/result")
    trains.requests.clear()
    trains.deleted = lambda name, publish=trains.created: publish({})
    trains.heard = lambda request: trains.jobs.update({made["metadata"]["name"]: made}) if request.body else None
    launched(job)
    assert changes(trains) == [("POST", JOBS), ("DELETE", f"{JOBS}/{made['metadata']['name']}")]


def test_a_takeover_that_fails_is_told_and_tried_again(trains, job, monkeypatch, capfd):
    name = under_way(trains, job, monkeypatch, {})
    trains.ill["PATCH", name] = 1
    launched(job)
    assert [method for method, _ in changes(trains)] == ["PATCH", "PATCH", "DELETE"]
    assert "the TrainJob is not this step's yet: etcd leader changed" in capfd.readouterr().err


def test_a_training_that_cannot_be_watched_any_longer_is_left_alone(trains, job, monkeypatch):
    monkeypatch.setattr(follow, "UNREACHABLE_SECONDS", 0.05)
    trains.broken = 10**6
    with pytest.raises(RuntimeError, match="the Kubernetes API has not answered for too long: the apiserver is"):
        launched(job)
    assert len(trains.jobs) == 1


def ended(code: int, second: int = 0) -> dict[str, Any]:
    return container(state={"terminated": {"exitCode": code, "finishedAt": f"2026-01-02T03:05:{second:02}Z"}})


def test_a_log_that_cannot_be_read_does_not_hide_the_failure(trains, job, monkeypatch):
    trains.ill[("GET", "/log")] = 10**6
    trains.moments = [Moment(pods=[pod("n-0", 0, ended(1)), pod("n-1", 1, ended(0))])]
    with pytest.raises(RuntimeError, match=r"^node 0 ended with exit code 1$"):
        launched(job)


def test_a_store_that_is_away_does_not_hide_the_failure(trains, job, s3, capfd):
    trains.created = lambda made: setattr(s3, "fault", lambda environ: ("403 Forbidden", REFUSED))
    trains.moments = [Moment(pods=[pod("n-0", 0, ended(1)), pod("n-1", 1, ended(0))], logs={"n-0": "t the cause"})]
    with pytest.raises(RuntimeError, match=r"node 0 ended with exit code 1; the end of the log of n-0:\nt the cause"):
        launched(job)
    assert "trainjob/refusal.json cannot be read: InputError" in capfd.readouterr().err


def test_the_input_that_a_node_refuses_is_told_though_another_node_ended_first(trains, job, monkeypatch):
    monkeypatch.setattr(follow, "SETTLING_SECONDS", 60)
    place = open_store(f"{job['run']['mirror']}/trainjob")
    told = {
        "problem": "the loss became nan at update 7",
        "file": None,
        "line": None,
        "field": "learning_rate",
        "hint": "",
    }
    polls = []

    def heard(request: Request) -> None:
        if request.path == PODS:
            polls.append(request)
            if len(polls) == 4:
                place.write("refusal.json", json.dumps(told).encode())

    trains.heard = heard
    lost = {"n-0": "t RuntimeError: Connection closed by peer [10.0.0.2]:41234"}
    trains.moments = [
        Moment(pods=[pod("n-0", 0, ended(1)), pod("n-1", 1, container(state={"running": {}}))], logs=lost)
    ]
    with pytest.raises(Exception, match="the loss became nan at update 7") as caught:
        launched(job)
    assert type(caught.value).__name__ == "InputError"
    assert len(polls) >= 4


def test_of_several_failures_the_one_that_is_no_lost_peer_is_told(trains, job):
    place = open_store(f"{job['run']['mirror']}/trainjob")

    def created(made: dict[str, Any]) -> None:
        place.write("failures/0.txt", b"node 0: RuntimeError: Connection closed by peer [10.0.0.2]:41234")
        place.write("failures/1.txt", b"node 1: ArithmeticError: no such luck")

    trains.created = created
    trains.moments = [Moment(pods=[pod("n-0", 0, ended(1)), pod("n-1", 1, container(state={"running": {}}))])]
    with pytest.raises(RuntimeError, match=r"exit code 1:\nnode 1: ArithmeticError: no such luck$"):
        launched(job)


@pytest.mark.parametrize(
    ("code", "log", "kind"),
    [
        (137, "t rank 1 trains", "passing"),
        (1, "t RuntimeError: NCCL error: remote process exited", "passing"),
        (1, "t ArithmeticError: no such luck", "lasting"),
        (1, "t torch.OutOfMemoryError: CUDA out of memory", "lasting"),
    ],
)
def test_whether_a_nodes_failure_may_pass_is_told(code, log, kind, trains, job):
    trains.moments = [Moment(pods=[pod("n-0", 0, ended(0)), pod("n-1", 1, ended(code))], logs={"n-1": log})]
    with pytest.raises(ProcessFailedError) as caught:
        launched(job)
    assert caught.value.crash == kind


def test_of_several_logs_the_one_that_is_no_lost_peer_is_told(trains, job):
    logs = {"n-0": "t DistNetworkError: failed to recv, got 0 bytes", "n-1": "t ArithmeticError: no such luck"}
    trains.moments = [Moment(pods=[pod("n-0", 0, ended(1, 1)), pod("n-1", 1, ended(1, 2))], logs=logs)]
    with pytest.raises(RuntimeError, match=r"the end of the log of n-1:\nt ArithmeticError: no such luck$"):
        launched(job)


def test_pods_that_the_cluster_does_not_make_end_the_step_with_the_clusters_words(trains, job, monkeypatch, capfd):
    monkeypatch.setattr(follow, "HEALING_SECONDS", 0.1)
    group = f"tune-{'x' * 10}-1-node-0"

    def created(made: dict[str, Any]) -> None:
        nonlocal group
        group = f"{made['metadata']['name']}-node-0"
        trains.moments = [Moment(pods=[pod("n-0", 0)], events={group: "exceeded quota: retrievers"})]

    trains.created = created
    with pytest.raises(Exception, match="the cluster has made 1 of 2 pods") as caught:
        launched(job)
    message = (
        'field "nodes": the cluster has made 1 of 2 pods (FailedCreate: exceeded quota: retrievers); ask for fewer'
    )
    assert str(caught.value).startswith(message)
    assert capfd.readouterr().err.count("FailedCreate: exceeded quota: retrievers") == 1
    assert not trains.jobs


def test_a_queue_is_waited_for_as_long_as_it_takes(trains, job, monkeypatch):
    monkeypatch.setattr(follow, "HEALING_SECONDS", 0.02)
    trains.moments = [*[Moment([condition("Suspended")])] * 10, Moment(COMPLETE)]
    launched(job)
    assert len(trains.moments) == 1


def test_nodes_that_all_start_again_after_a_suspension_are_not_lost(trains, job):
    def moment(*names: str, suspended: bool = False) -> Moment:
        found = [pod(name, index) for index, name in enumerate(names) if name]
        return Moment([condition("Suspended")] if suspended else [], pods=found)

    restarted = [moment("b-0", "a-1"), moment("b-0", "b-1")]
    leaving = restarted[0].pods[1]["metadata"]
    leaving["deletionTimestamp"] = "2026-01-02T03:05:00Z"
    again = [moment("c-0", "b-1", suspended=True), moment("c-0"), moment("c-0", "c-1")]
    trains.moments = [moment("a-0", "a-1"), *restarted, *again, Moment(COMPLETE)]
    launched(job)
    assert len(trains.moments) == 1
