"""In a namespace that Kubeflow has set up, nothing replaces an object of its own or holds for pods of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_retriever.training.trainjob.manifest import POD_LABELS
from tests.manifests.rendering import SHARED, copied, kubectl, named, needs_kubectl, of_kind, rendered

pytestmark = needs_kubectl
KINDS = {"ConfigMap", "NetworkPolicy", "Role", "RoleBinding"}
"""None of them holds for pods that do not ask for it, but the policy, which selects."""
OPTIONAL_KINDS = {"LocalQueue", "ServiceAccount"}


@pytest.mark.parametrize("overlay", SHARED)
def test_every_object_is_the_projects_by_name(overlay: str) -> None:
    objects = rendered(overlay)
    assert {found["kind"] for found in objects} == KINDS
    assert all(found["metadata"]["name"].startswith("llm-retriever-") for found in objects)


@pytest.mark.parametrize("overlay", SHARED)
def test_the_policy_selects_the_projects_pods_alone(overlay: str) -> None:
    (policy,) = of_kind(rendered(overlay), "NetworkPolicy")
    assert policy["spec"]["podSelector"] == {"matchLabels": POD_LABELS}
    (incoming,) = policy["spec"]["ingress"]
    assert incoming["from"] == [{"podSelector": {"matchLabels": POD_LABELS}}]


@pytest.mark.parametrize("overlay", SHARED)
def test_so_are_the_optional_parts(overlay: str, tmp_path: Path) -> None:
    manifests = copied(tmp_path)
    file = manifests / "overlays" / overlay / "kustomization.yaml"
    written = yaml.safe_load(file.read_text())
    written["components"] += ["../../components/kueue", "../../components/pipelines"]
    file.write_text(yaml.safe_dump(written))
    objects = rendered(overlay, manifests)
    assert {found["kind"] for found in objects} == KINDS | OPTIONAL_KINDS
    assert all(found["metadata"]["name"].startswith("llm-retriever") for found in objects)
    assert {found["metadata"]["namespace"] for found in objects} == {SHARED[overlay]}


def test_a_queue_takes_only_pods_that_name_it() -> None:
    # Kueue puts every pod without a label into a LocalQueue called `default`, Kubeflow's own among them.
    manifests = Path(__file__).parents[2] / "manifests"
    queue = yaml.safe_load((manifests / "components" / "kueue" / "local-queue.yaml").read_text())
    assert queue["metadata"]["name"] == "llm-retriever"


def test_kubeflows_launcher_gets_the_providers_and_keeps_the_rest(tmp_path: Path) -> None:
    data = named(rendered("standalone"), "ConfigMap", "llm-retriever-launcher")["data"]
    assert set(data) == {"providers"}
    kubeflows = {"defaultPipelineRoot": "minio://mlpipeline/v2/artifacts"}
    object_ = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kfp-launcher"}, "data": kubeflows}
    file = tmp_path / "launcher.yaml"
    file.write_text(yaml.safe_dump(object_))
    patch = yaml.safe_dump({"data": data})
    text = kubectl("patch", "--local", "-f", str(file), "--type", "merge", "--patch", patch, "-o", "yaml")
    assert yaml.safe_load(text)["data"] == kubeflows | data
