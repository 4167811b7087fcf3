"""What a node does around its training: inputs fetched, result sent by the first one, refusals and failures left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.errors import InputError
from llm_retriever.stores.opening import open_store
from llm_retriever.training.trainjob.launch import launch_on_nodes
from llm_retriever.training.trainjob.nodes import Nodes
from tests.training.trainjob.machines import ROOT, Machines

NODES = Nodes(2, 2, "1", "1Gi", "", "own", "torch-distributed", "")
WORK = """
import json, os, sys
from pathlib import Path
from llm_retriever.errors import InputError

def work(job):
    rank, act = int(os.environ["RANK"]), job["settings"]["act"]
    if act == "refuse" and rank == 3:
        raise InputError("the text is empty", file="corpus.jsonl", line=17, field="text", hint="give it a text")
    if act == "fail" and rank == 3:
        raise ArithmeticError("no such luck")
    if act != "write":
        import time
        time.sleep(600)
    print(f"rank {rank} of {os.environ['WORLD_SIZE']}", file=sys.stderr)
    if rank == 0:
        seen = Path(job["paths"]["adapted"], "deep", "weights").read_text()
        Path(job["draft"], "model").mkdir()
        Path(job["draft"], "model", "weights").write_text(seen.upper())
        Path(job["log"]).write_text(json.dumps(job["run"]))
"""


@pytest.fixture
def job(tmp_path, s3, monkeypatch) -> dict[str, Any]:
    (tmp_path / "small_node_jobs.py").write_text(WORK)
    monkeypatch.setattr("tests.training.trainjob.machines.ROOT", f"{ROOT}{os.pathsep}{tmp_path}")
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_text("weights")
    (tmp_path / "draft").mkdir()
    return {
        "settings": {"act": "write"},
        "run": {"title": "tune", "mirror": f"s3://{s3.bucket}/checkpoints/key", "checkpoints": "/here/alone"},
        "paths": {"adapted": str(tmp_path / "model")},
        "draft": str(tmp_path / "draft"),
        "log": str(tmp_path / "log.json"),
    }


def test_all_processes_of_all_nodes_work_and_the_first_nodes_result_arrives(job, cluster, tmp_path, capfd):
    Machines(cluster, tmp_path)
    launch_on_nodes("small_node_jobs", job, NODES)
    assert (tmp_path / "draft" / "model" / "weights").read_text() == "WEIGHTS"
    run = json.loads((tmp_path / "log.json").read_text())
    assert run["mirror"] == job["run"]["mirror"]
    assert Path(run["checkpoints"]).name == "checkpoints"
    assert not Path(run["checkpoints"]).parent.exists()
    assert "rank 0 of 4" in capfd.readouterr().out.splitlines()


def test_bad_input_that_only_one_process_sees_ends_the_step_as_bad_input(job, cluster, tmp_path):
    Machines(cluster, tmp_path)
    with pytest.raises(InputError) as caught:
        launch_on_nodes("small_node_jobs", job | {"settings": {"act": "refuse"}}, NODES)
    assert str(caught.value) == 'corpus.jsonl:17: field "text": the text is empty; give it a text'
    assert not cluster.jobs


def test_a_failure_arrives_with_its_traceback(job, cluster, tmp_path):
    Machines(cluster, tmp_path)
    place = open_store(f"{job['run']['mirror']}/trainjob")
    with pytest.raises(
        RuntimeError, match=r"node \d ended with exit code 1:\nnode 1: (.|\n)*ArithmeticError: no such luck"
    ):
        launch_on_nodes("small_node_jobs", job | {"settings": {"act": "fail"}}, NODES)
    assert "ArithmeticError: no such luck" in place.read("failures/1.txt").decode()


def test_a_node_that_is_started_again_when_all_is_done_does_nothing(job, cluster, tmp_path, s3):
    machines = Machines(cluster, tmp_path)
    launch_on_nodes("small_node_jobs", job, NODES)
    place = open_store(f"{job['run']['mirror']}/trainjob")
    trainer = {"numNodes": 2, "numProcPerNode": 2, "command": ["python", "-m", "llm_retriever.training.trainjob.node"]}
    trainer |= {"args": [place.uri], "env": [{"name": name} for name in s3.environment]}
    s3.requests.clear()
    assert machines._node(trainer, 0, 1).wait(60) == 0
    assert {method for method, _ in s3.requests} == {"GET"}
