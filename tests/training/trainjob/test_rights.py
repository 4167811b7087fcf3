"""The role that the manifests give a step: just what following a TrainJob asks of the Kubernetes API."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_retriever.stores.opening import open_store
from tests.training.trainjob.api_server import JOBS, Moment, Request, pod
from tests.training.trainjob.test_launch import COMPLETE, job, launched, own_pod, trains

__all__ = ["job", "trains"]
RBAC = Path(__file__).parents[3] / "manifests" / "base" / "rbac.yaml"
VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}


def right(request: Request) -> tuple[str, str, str]:
    """API group, resource and verb that Kubernetes checks for a request."""
    parts = request.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    _, _, kind, *name = rest  # namespaces, the namespace, …
    resource = "/".join([kind, *name[1:]])
    return group, resource, VERBS.get(request.method, "get" if name else "list")


def rights_of(role: str) -> set[tuple[str, str, str]]:
    (found,) = [
        document
        for document in yaml.safe_load_all(RBAC.read_text())
        if document["kind"] == "Role" and document["metadata"]["name"] == role
    ]
    return {
        (group, resource, verb)
        for rule in found["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_has_what_a_step_asks_for_and_no_more(trains, job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("POD_NAME", "first-pod")
    trains.own = own_pod("first-pod")
    trains.moments = [Moment(), Moment(pods=[pod("n-0", 0)], logs={"n-0": "t one"}), Moment(COMPLETE)]
    launched(job)
    made = trains.asked("POST", JOBS)[0].body
    open_store(job["run"]["mirror"]).delete("trainjob/result")
    trains.jobs[made["metadata"]["name"]] = made
    trains.deleted = lambda name, publish=trains.created: publish({})
    launched(job)
    assert {right(request) for request in trains.requests} == rights_of("llm-retriever-train-jobs")
