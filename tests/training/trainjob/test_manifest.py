"""The TrainJob is what the golden file says, has the fields that Trainer's schema has, and pods that Kubernetes accepts."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from llm_retriever.errors import InputError
from llm_retriever.settings import AdaptationSettings, TuningSettings, as_dict
from llm_retriever.stores import secret
from llm_retriever.training.trainjob import manifest as module
from llm_retriever.training.trainjob.manifest import Own, manifest, specification
from llm_retriever.training.trainjob.nodes import Nodes, nodes_of
from pipelines import presets, stages
from pipelines.choice import TRAINING, names_of
from pipelines.form import defaults

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KUBERNETES = "1.32"
NODES = Nodes(
    number=4,
    processes=8,
    cpus="32",
    memory="512Gi",
    gpu_type="nvidia.com/gpu",
    image="registry.example/team/llm-retriever-gpu@sha256:abcd",
    runtime="torch-distributed",
    account="",
    labels={"kueue.x-k8s.io/queue-name": "training"},
)
OWN = Own(
    name="train-retriever-7xk2p-system-container-impl-101",
    uid="0f3f2c1e-5f0f-4f4e-9d4d-0d5b6a1c2e3f",
    image="registry.example/team/llm-retriever-gpu@sha256:abcd",
    account="pipeline-runner",
    placement={
        "nodeSelector": {"pool": "a100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    },
)
URI = "s3://my-bucket/checkpoints/0123456789abcdef/trainjob"


def rendered(nodes: Nodes = NODES, own: Own = OWN) -> dict[str, Any]:
    return manifest(specification(nodes, URI, own), "tune", "8f2e1c0a7b", "c04d5f2a91", 1, nodes.labels, own)


def test_the_trainjob_is_that_of_the_golden_file():
    golden = yaml.safe_load((HERE / "golden" / "trainjob.yaml").read_text())
    assert rendered() == golden


@pytest.mark.parametrize("own", [OWN, Own()])
@pytest.mark.parametrize("gpu_type", ["nvidia.com/gpu", ""])
def test_the_trainjob_has_the_fields_of_trainers_schema(own, gpu_type):
    schema = json.loads((HERE / "trainjob_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(rendered(dataclasses.replace(NODES, gpu_type=gpu_type), own), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "trainer", "numNodes"), "4"),
        (("spec", "trainer", "numProcPerNode"), 0),
        (("spec", "podTemplateOverrides"), []),
        (("metadata", "name"), "7b-first-digit"),
    ],
)
def test_the_schema_refuses_what_trainer_would_refuse(path, value):
    wrong = rendered()
    place = wrong
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads((HERE / "trainjob_schema.json").read_text()))


def test_a_pod_with_what_the_trainjob_adds_is_accepted_by_kubernetes():
    spec = rendered()["spec"]
    (group,) = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    metadata, pod = (group["template"]["spec"]["template"][name] for name in ("metadata", "spec"))
    trainer = spec["trainer"]
    pod["containers"][0] |= {name: trainer[name] for name in ("image", "command", "args", "env")}
    pod["containers"][0]["resources"] = trainer["resourcesPerNode"]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"name": "node"}, "spec": pod}
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    pod["containers"][0]["commands"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="commands"):
        kubernetes_validate.validate(whole, KUBERNETES, strict=True)


def test_no_variable_of_torchruns_and_no_secrets_value_is_in_it():
    env = rendered()["spec"]["trainer"]["env"]
    assert not [entry["name"] for entry in env if entry["name"].startswith("PET_")]
    assert all(set(entry) == {"name", "valueFrom"} for entry in env)
    assert all(entry["valueFrom"]["secretKeyRef"]["optional"] for entry in env)


def test_steps_and_nodes_take_their_store_from_the_same_secret():
    assert (module.STORE_SECRET, module.VARIABLES) == (stages.STORE_SECRET, secret.VARIABLES)


SEVERAL = {"nodes": 2, "checkpoint_uri": "s3://my-bucket/checkpoints", "precision": "bf16"}


@pytest.mark.parametrize("settings", [AdaptationSettings, TuningSettings])
def test_both_training_steps_ask_for_nodes_in_the_same_way(settings):
    assert nodes_of(settings()) is None
    nodes = nodes_of(settings(**SEVERAL, node_labels="kueue.x-k8s.io/queue-name=training, team = search"))
    assert nodes is not None
    assert (nodes.number, nodes.runtime, nodes.gpu_type) == (2, "torch-distributed", "nvidia.com/gpu")
    assert nodes.labels == {"kueue.x-k8s.io/queue-name": "training", "team": "search"}
    named = {name for name in as_dict(settings()) if name.startswith("node")}
    words = ["gpus", "cpus", "memory", "gpu_type", "image", "runtime", "account", "labels"]
    assert named == {"nodes", *(f"node_{word}" for word in words)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"checkpoint_uri": ""}, r'"checkpoint_uri": several nodes share nothing but an object store; give s3://'),
        ({"checkpoint_uri": "/mnt/shared"}, r'"checkpoint_uri": several nodes share nothing but an object store'),
        ({"precision": "auto"}, r'"precision": .* say bf16 or fp32'),
        ({"processes": 1}, r'"processes": .* use 0; node_gpus counts the GPUs of each node'),
        ({"gpus": "8"}, r'"gpus": .* use 0; node_gpus counts the GPUs of each node'),
        ({"node_labels": "training"}, r'"node_labels": \'training\' is not of the form key=value'),
        ({"node_labels": "a b/c=x y"}, r'"node_labels": .* is no label of Kubernetes'),
        (
            {"node_labels": "llm-retriever/training=x"},
            r'"node_labels": llm-retriever/training is set by the step itself',
        ),
        ({"node_memory": "500K"}, r'"node_memory": 500K is too little memory for a node'),
        ({"node_memory": "0"}, r'"node_memory": 0 is too little memory for a node'),
        ({"node_cpus": "0.0"}, r'"node_cpus": a node needs processors'),
        ({"batch_size": 40}, r'"batch_size": 40 examples cannot be divided among 16 processes \(2 nodes of 8\)'),
    ],
)
def test_what_does_not_go_with_several_nodes_is_refused_by_name(given, message):
    with pytest.raises(InputError, match=message):
        nodes_of(TuningSettings(**SEVERAL | given))
    assert nodes_of(TuningSettings(**SEVERAL | given | {"nodes": 1})) is None


def test_a_run_is_refused_before_it_is_submitted_under_the_pipelines_names():
    given = defaults() | {"corpus_uri": "s3://b/c", "tune_nodes": 2, "run_precision": "bf16"}
    with pytest.raises(InputError, match=r'"run_checkpoint_uri": several nodes share nothing but an object store'):
        presets.check(given)
    given["run_checkpoint_uri"] = "s3://my-bucket/checkpoints"
    with pytest.raises(InputError, match=r'"tune_gpus": the step\'s own pod trains nothing'):
        presets.check(given)
    presets.check(given | {"tune_gpus": "0"})


def parameters_of(preset: str, *assignments: str) -> dict[str, Any]:
    """All parameters of a run, as `submit` checks them."""
    base = defaults()
    loaded = {name: value for name, value in presets.load(preset).items() if name in base}
    return base | loaded | presets.parsed(names_of(TRAINING), list(assignments))


def test_a_published_batch_that_the_nodes_cannot_share_is_refused_before_anything_starts():
    asked = ("corpus_uri=s3://b/c", "run_checkpoint_uri=s3://b/k", "run_precision=bf16", "adapt_gpus=0")
    with pytest.raises(InputError, match=r'"adapt_batch_size": 32 examples cannot be divided among 64 processes'):
        presets.check(parameters_of("llm2vec-llama2-7b", *asked, "adapt_nodes=8"))
    presets.check(parameters_of("llm2vec-llama2-7b", *asked, "adapt_nodes=4"))
    with pytest.raises(InputError, match=r'"adapt_node_memory": 500K is too little memory'):
        presets.check(parameters_of("llm2vec-llama2-7b", *asked, "adapt_nodes=4", "adapt_node_memory=500K"))


def test_the_documented_command_passes_the_checks_and_fits_the_quota():
    text = (ROOT / "docs" / "multi-node.md").read_text()
    (command,) = re.findall(r"^llm-retriever submit .*?(?<!\\)$", text, re.M | re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    given = parameters_of(words[words.index("--preset") + 1], *(word for word in words if "=" in word))
    presets.check(given)
    limits = yaml.safe_load_all((ROOT / "manifests" / "components" / "own-namespace" / "limits.yaml").read_text())
    (quota,) = [found["spec"]["hard"] for found in limits if found["kind"] == "ResourceQuota"]
    for stage in presets.TRAINING:
        gpus = given[f"{stage}_nodes"] * given[f"{stage}_node_gpus"]
        assert 0 < gpus <= int(quota["requests.nvidia.com/gpu"])
        cpus = given[f"{stage}_nodes"] * int(given[f"{stage}_node_cpus"]) + int(given[f"{stage}_cpus"])
        assert cpus <= int(quota["requests.cpu"])
