"""The rendered overlays: valid for Kubernetes, tight in what they allow, and free of secrets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.stages import STORE_SECRET, STORE_VARIABLES

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
VERSION = "1.32"
CUSTOM = {"LocalQueue"}
pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which renders overlays, is not installed"
)


def rendered(overlay: str) -> list[dict[str, Any]]:
    command = ["kubectl", "kustomize", str(MANIFESTS / "overlays" / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(request.param)


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [found for found in objects if found["kind"] == kind]


def test_the_overlays_are_those_that_the_docs_name() -> None:
    assert OVERLAYS == ["aws-irsa", "kind", "minio"]


def test_every_object_has_kubernetes_own_schema(objects: list[dict[str, Any]]) -> None:
    checked = [kubernetes_validate.validate(o, VERSION, strict=True) for o in objects if o["kind"] not in CUSTOM]
    assert len(checked) >= 10


def test_a_misspelt_field_would_be_noticed() -> None:
    quota = of_kind(rendered("minio"), "ResourceQuota")[0]
    quota["spec"]["hards"] = quota["spec"].pop("hard")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(quota, VERSION, strict=True)


def test_everything_lies_in_the_namespace(objects: list[dict[str, Any]]) -> None:
    assert {o["metadata"].get("namespace", "retrievers") for o in objects} == {"retrievers"}
    assert [o["metadata"]["name"] for o in of_kind(objects, "Namespace")] == ["retrievers"]


def test_no_overlay_makes_a_secret_or_holds_a_key(objects: list[dict[str, Any]]) -> None:
    assert of_kind(objects, "Secret") == []
    assert not any(key in yaml.safe_dump(objects) for key in ("secretAccessKey:", "password:", "AKIA"))


def test_roles_name_what_they_allow(objects: list[dict[str, Any]]) -> None:
    rules = [rule for role in of_kind(objects, "Role") for rule in role["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert rule["resourceNames"]
            assert rule["verbs"] == ["get"]
    assert of_kind(objects, "ClusterRole") == []


def test_every_binding_is_of_a_role_and_an_account_that_exist(objects: list[dict[str, Any]]) -> None:
    roles = {role["metadata"]["name"] for role in of_kind(objects, "Role")}
    accounts = {account["metadata"]["name"] for account in of_kind(objects, "ServiceAccount")}
    for binding in of_kind(objects, "RoleBinding"):
        assert binding["roleRef"]["name"] in roles
        assert {subject["name"] for subject in binding["subjects"]} <= accounts


def test_the_launcher_reads_its_keys_where_the_steps_do(objects: list[dict[str, Any]]) -> None:
    (launcher,) = of_kind(objects, "ConfigMap")
    s3 = yaml.safe_load(launcher["data"]["providers"])["s3"]["default"]
    assert launcher["data"]["defaultPipelineRoot"].startswith("s3://")
    assert "?" not in launcher["data"]["defaultPipelineRoot"]
    if s3["credentials"]["fromEnv"]:
        (account,) = of_kind(objects, "ServiceAccount")
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    else:
        reference = s3["credentials"]["secretRef"]
        assert reference["secretName"] == STORE_SECRET
        assert {reference["accessKeyKey"], reference["secretKeyKey"]} <= set(STORE_VARIABLES)


def test_the_object_store_of_the_laptop_runs_without_privileges() -> None:
    (deployment,) = of_kind(rendered("kind"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["envFrom"] == [{"secretRef": {"name": STORE_SECRET}}]
