"""The rendered overlays: valid for Kubernetes, tight in what they allow, and free of secrets."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from llm_retriever.stores.secret import STORE_SECRET
from llm_retriever.stores.secret import VARIABLES as STORE_VARIABLES
from tests.manifests.rendering import (
    CUSTOM,
    OVERLAYS,
    OWN,
    SHARED,
    VERSION,
    Objects,
    copied,
    named,
    needs_kubectl,
    of_kind,
    rendered,
)

pytestmark = needs_kubectl


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> Objects:
    return rendered(request.param)


def test_the_overlays_are_those_that_the_docs_name() -> None:
    assert OVERLAYS == ["aws-irsa", "kind", "minio", "profile", "standalone"]


def test_every_object_has_kubernetes_own_schema(objects: Objects) -> None:
    checked = [kubernetes_validate.validate(o, VERSION, strict=True) for o in objects if o["kind"] not in CUSTOM]
    assert len(checked) >= 5


def test_a_misspelt_field_would_be_noticed() -> None:
    quota = of_kind(rendered("minio"), "ResourceQuota")[0]
    quota["spec"]["hards"] = quota["spec"].pop("hard")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(quota, VERSION, strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_lies_in_the_namespace_that_the_overlay_names(overlay: str, tmp_path: Path) -> None:
    manifests = copied(tmp_path)
    file = manifests / "overlays" / overlay / "kustomization.yaml"
    written = SHARED.get(overlay, "retrievers")
    text = file.read_text()
    assert f"\nnamespace: {written}\n" in text
    file.write_text(text.replace(f"\nnamespace: {written}\n", "\nnamespace: elsewhere\n"))
    objects = rendered(overlay, manifests)
    assert {o["metadata"]["namespace"] for o in objects if o["kind"] != "Namespace"} == {"elsewhere"}
    made = [o["metadata"]["name"] for o in of_kind(objects, "Namespace")]
    assert made == (["elsewhere"] if overlay in OWN else [])
    for binding in of_kind(objects, "RoleBinding"):
        assert {subject["namespace"] for subject in binding["subjects"]} == {"elsewhere"}


def test_no_overlay_makes_a_secret_or_holds_a_key(objects: Objects) -> None:
    assert of_kind(objects, "Secret") == []
    assert not any(key in yaml.safe_dump(objects) for key in ("secretAccessKey:", "password:", "AKIA"))


def test_roles_name_what_they_allow(objects: Objects) -> None:
    rules = [rule for role in of_kind(objects, "Role") for rule in role["rules"]]
    assert rules
    for rule in rules:
        assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"]
        if {"secrets", "configmaps"} & set(rule["resources"]):
            assert rule["resourceNames"]
            assert rule["verbs"] == ["get"]
    assert of_kind(objects, "ClusterRole") == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_binding_is_of_a_role_and_an_account_that_exist(overlay: str) -> None:
    objects = rendered(overlay)
    roles = {role["metadata"]["name"] for role in of_kind(objects, "Role")}
    kubeflows = {"standalone": {"pipeline-runner"}, "profile": {"default-editor"}}
    accounts = kubeflows.get(overlay) or {a["metadata"]["name"] for a in of_kind(objects, "ServiceAccount")}
    for binding in of_kind(objects, "RoleBinding"):
        assert binding["roleRef"]["name"] in roles
        assert {subject["name"] for subject in binding["subjects"]} <= accounts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_launcher_reads_its_keys_where_the_steps_do(overlay: str) -> None:
    objects = rendered(overlay)
    launcher = named(objects, "ConfigMap", "kfp-launcher" if overlay in OWN else "llm-retriever-launcher")["data"]
    s3 = yaml.safe_load(launcher["providers"])["s3"]["default"]
    if s3["credentials"]["fromEnv"]:
        (account,) = of_kind(objects, "ServiceAccount")
        assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]
    else:
        reference = s3["credentials"]["secretRef"]
        assert reference["secretName"] == STORE_SECRET
        assert {reference["accessKeyKey"], reference["secretKeyKey"]} <= set(STORE_VARIABLES)


@pytest.mark.parametrize("overlay", OWN)
def test_a_namespace_of_ones_own_says_where_artifacts_go_and_what_a_run_may_take(overlay: str) -> None:
    objects = rendered(overlay)
    root = named(objects, "ConfigMap", "kfp-launcher")["data"]["defaultPipelineRoot"]
    assert root.startswith("s3://")
    assert "?" not in root
    hard = named(objects, "ResourceQuota", "llm-retriever")["spec"]["hard"]
    assert {"requests.cpu", "requests.memory", "requests.nvidia.com/gpu", "pods"} <= set(hard)
    (limit,) = named(objects, "LimitRange", "llm-retriever")["spec"]["limits"]
    # A quota refuses pods whose containers name no request, as those that Argo adds.
    assert set(limit["defaultRequest"]) == {"cpu", "memory"}


@pytest.mark.parametrize("overlay", OWN)
def test_kubeflows_own_policies_let_a_namespace_of_ones_own_in(overlay: str) -> None:
    (namespace,) = of_kind(rendered(overlay), "Namespace")
    assert namespace["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kubeflow-profile"


def test_the_object_store_of_the_laptop_runs_without_privileges() -> None:
    (deployment,) = of_kind(rendered("kind"), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    (container,) = pod["containers"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["envFrom"] == [{"secretRef": {"name": STORE_SECRET}}]
