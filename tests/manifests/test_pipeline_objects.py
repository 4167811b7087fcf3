"""Pipelines as objects of Kubernetes: what `compile --kubernetes` writes, alone and in an overlay."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.__main__ import main

ROOT = Path(__file__).parents[2]
VERSION = "1.32"
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
KINDS: dict[str, dict[str, type]] = {
    "Pipeline": {"displayName": str, "description": str},
    "PipelineVersion": {
        "displayName": str,
        "description": str,
        "pipelineName": str,
        "pipelineSpec": dict,
        "platformSpec": dict,
    },
}
"""Fields of `spec` in `pipelines.kubeflow.org/v2beta1`; the API server drops others in silence."""
OBJECT_LIMIT = 1.5 * 2**20
"""Bytes that Kubernetes' store takes of one object."""


def compiled(folder: Path, *arguments: str, namespace: str = "retrievers") -> list[dict[str, Any]]:
    target = folder / "objects.yaml"
    assert main(["compile", "--kubernetes", "--namespace", namespace, "--output", str(target), *arguments]) == 0
    return list(yaml.safe_load_all(target.read_text()))


def check(found: Mapping[str, Any], namespace: str) -> None:
    """What the definitions of these kinds demand."""
    assert set(found) == {"apiVersion", "kind", "metadata", "spec"}
    assert found["apiVersion"] == "pipelines.kubeflow.org/v2beta1"
    assert found["metadata"].keys() == {"name", "namespace"}
    assert found["metadata"]["namespace"] == namespace
    assert NAME.fullmatch(found["metadata"]["name"])
    fields = KINDS[found["kind"]]
    assert {name: fields.get(name) for name in found["spec"]} == {n: type(v) for n, v in found["spec"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["train_retriever", "compare_methods", "rerun_evaluate"])
def test_a_pipeline_becomes_the_two_objects_that_kubeflow_defines(pipeline: str, tmp_path: Path) -> None:
    objects = compiled(tmp_path, pipeline)
    assert [found["kind"] for found in objects] == ["Pipeline", "PipelineVersion"]
    for found in objects:
        check(found, "retrievers")
    pipeline_object, version = objects
    assert version["spec"]["pipelineName"] == pipeline_object["metadata"]["name"] == pipeline.replace("_", "-")
    assert len(yaml.safe_dump(version)) < OBJECT_LIMIT
    json_format.ParseDict(version["spec"]["pipelineSpec"], pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict(version["spec"]["platformSpec"], pipeline_spec_pb2.PlatformSpec())


@pytest.mark.slow
def test_the_objects_hold_what_the_plain_yaml_does(tmp_path: Path) -> None:
    given = ["--preset", "llm-ql-llama2-7b", "corpus_uri=s3://bucket/corpus"]
    _, version = compiled(tmp_path, *given)
    plain = tmp_path / "plain.yaml"
    assert main(["compile", *given, "--output", str(plain)]) == 0
    assert [version["spec"]["pipelineSpec"], version["spec"]["platformSpec"]] == list(
        yaml.safe_load_all(plain.read_text())
    )


@pytest.mark.slow
def test_a_version_is_named_after_what_it_consists_of(tmp_path: Path) -> None:
    names = [
        compiled(tmp_path, *arguments)[1]["metadata"]["name"]
        for arguments in ([], [], ["corpus_uri=s3://bucket/corpus"], ["--preset", "llm-ql-qwen3-0.6b"])
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"train-retriever-[0-9a-f]{8}", name) for name in names)
    assert compiled(tmp_path, "--version-name", "v1.2")[1]["metadata"]["name"] == "v1.2"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--kubernetes"], "give --kubernetes and --namespace NS together"),
        (["--namespace", "retrievers"], "give --kubernetes and --namespace NS together"),
        (["--kubernetes", "--namespace", "Retrievers"], "field \"--namespace\": 'Retrievers' cannot name an object"),
        (["--kubernetes", "--namespace", "r", "--version-name", "v_1"], "field \"--version-name\": 'v_1' cannot name"),
    ],
)
def test_names_that_kubernetes_would_refuse_are_refused_here(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", *arguments, "--output", str(tmp_path / "objects.yaml")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "objects.yaml").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which renders overlays, is not installed")
def test_an_overlay_takes_the_objects_and_an_account_that_may_write_them(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    overlay = tmp_path / "manifests" / "overlays" / "ours"
    overlay.mkdir()
    compiled(overlay)
    resources = {
        "namespace": "retrievers",
        "resources": ["../../base", "objects.yaml"],
        "components": ["../../components/pipelines"],
    }
    header = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(header | resources))
    command = ["kubectl", "kustomize", str(overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rendered = list(yaml.safe_load_all(text))
    for found in rendered:
        if found["kind"] in KINDS:
            check(found, "retrievers")
        else:
            kubernetes_validate.validate(found, VERSION, strict=True)
    assert sum(found["kind"] in KINDS for found in rendered) == 2
    (role,) = [o for o in rendered if o["kind"] == "Role" and o["metadata"]["name"] == "llm-retriever-publisher"]
    assert role["rules"][0]["apiGroups"] == ["pipelines.kubeflow.org"]
    assert not {"*", "update"} & set(role["rules"][0]["verbs"])
