"""What the network policies let through, and the one place that says where the object store is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from llm_retriever.stores.secret import STORE_SECRET
from llm_retriever.stores.secret import VARIABLES as STORE_VARIABLES
from llm_retriever.training.trainjob.manifest import POD_LABELS
from tests.manifests.rendering import (
    MANIFESTS,
    OVERLAYS,
    OWN,
    SHARED,
    Objects,
    copied,
    kubectl,
    lets_out,
    named,
    needs_kubectl,
    of_kind,
    rendered,
)

pytestmark = needs_kubectl
KUBEFLOWS_LABEL = {"pipelines.kubeflow.org/v2_component": "true"}
"""What Kubeflow puts on every pod of a run: drivers, importers, steps."""
STORES = sorted(path.parents[1].name for path in MANIFESTS.glob("overlays/*/store/s3.env"))


def policies(objects: Objects) -> Objects:
    return [found for found in of_kind(objects, "NetworkPolicy") if found["metadata"]["name"] != "object-store"]


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("port", [8080, 8887, 8888, 8333, 9000])
def test_drivers_and_launchers_reach_kubeflows_services(overlay: str, port: int) -> None:
    kubeflow = SHARED["standalone"]
    assert all(lets_out(policy, port, kubeflow) for policy in policies(rendered(overlay)))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_reaches_names_the_kubernetes_api_and_hubs(overlay: str) -> None:
    for policy in policies(rendered(overlay)):
        assert all(lets_out(policy, port) for port in (443, 6443, 8443, 16443))
        assert all(lets_out(policy, port, protocol=way) for port in (53, 5353) for way in ("UDP", "TCP"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_database_of_kubeflows_and_a_mail_server_are_out_of_reach(overlay: str) -> None:
    for policy in policies(rendered(overlay)):
        assert not lets_out(policy, 3306, "kubeflow")
        assert not lets_out(policy, 25)


@pytest.mark.parametrize("overlay", OWN)
def test_in_a_namespace_of_ones_own_every_pod_of_a_run_is_under_a_policy(overlay: str) -> None:
    objects = rendered(overlay)
    steps, drivers = (named(objects, "NetworkPolicy", f"llm-retriever-{name}")["spec"] for name in ("steps", "drivers"))
    assert steps["podSelector"] == {"matchLabels": POD_LABELS}
    assert drivers["podSelector"] == {"matchLabels": KUBEFLOWS_LABEL}
    assert drivers["egress"] == steps["egress"]
    assert "Ingress" in drivers["policyTypes"]
    assert "ingress" not in drivers


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nodes_that_train_together_reach_each_other_on_every_port(overlay: str) -> None:
    steps = named(rendered(overlay), "NetworkPolicy", "llm-retriever-steps")["spec"]
    peers = [{"podSelector": {"matchLabels": POD_LABELS}}]
    assert {"to": peers} in steps["egress"]
    assert steps["ingress"] == [{"from": peers}]


@pytest.mark.parametrize(
    ("url", "plain", "pod_port"),
    [
        ("http://minio.storage.svc.cluster.local:9000", "true", 9000),
        ("http://rgw.example:7480", "true", 7480),
        ("https://rgw.storage.svc:8443", "false", 8080),
        ("https://s3.example:443", "false", 443),
    ],
)
@pytest.mark.parametrize("overlay", STORES)
def test_the_place_of_the_store_is_said_once(overlay: str, url: str, plain: str, pod_port: int, tmp_path: Path) -> None:
    manifests = copied(tmp_path)
    store = manifests / "overlays" / overlay / "store"
    (store / "s3.env").write_text(f"AWS_ENDPOINT_URL_S3={url}\nAWS_DEFAULT_REGION=north-1\n")
    written = yaml.safe_load((store / "kustomization.yaml").read_text())
    written["configMapGenerator"][0]["literals"] = [f"plainHTTP={plain}", f"podPort={pod_port}"]
    (store / "kustomization.yaml").write_text(yaml.safe_dump(written))
    objects = rendered(overlay, manifests)
    launcher = named(objects, "ConfigMap", "kfp-launcher" if overlay in OWN else "llm-retriever-launcher")["data"]
    s3 = yaml.safe_load(launcher["providers"])["s3"]["default"]
    scheme, _, endpoint = url.partition("://")
    assert s3["endpoint"] == endpoint
    assert s3["region"] == "north-1"
    assert s3["disableSSL"] is (scheme == "http")
    for policy in policies(objects):
        assert lets_out(policy, int(endpoint.rpartition(":")[2]))
        assert lets_out(policy, pod_port)


@pytest.mark.parametrize("overlay", STORES)
def test_what_an_overlay_says_of_its_store_fits_together(overlay: str) -> None:
    objects = rendered(overlay)
    store = named(objects, "ConfigMap", "llm-retriever-store")["data"]
    assert store["plainHTTP"] == str(store["AWS_ENDPOINT_URL_S3"].startswith("http://")).lower()
    assert all(lets_out(policy, int(store["podPort"])) for policy in policies(objects))
    for deployment in of_kind(objects, "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert [port["containerPort"] for port in container["ports"]] == [int(store["podPort"])]


def test_a_url_without_a_port_is_refused(tmp_path: Path) -> None:
    manifests = copied(tmp_path)
    (manifests / "overlays" / "minio" / "store" / "s3.env").write_text(
        "AWS_ENDPOINT_URL_S3=https://s3.example\nAWS_DEFAULT_REGION=us-east-1\n"
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rendered("minio", manifests)
    assert "https://s3.example" in caught.value.stderr


@pytest.mark.parametrize("overlay", STORES)
def test_the_secret_is_made_from_the_same_file(overlay: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys.env"
    keys.write_text("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")
    files = [MANIFESTS / "overlays" / overlay / "store" / "s3.env", keys]
    given = [f"--from-env-file={file}" for file in files]
    text = kubectl("create", "secret", "generic", STORE_SECRET, *given, "--dry-run=client", "-o", "yaml")
    assert set(yaml.safe_load(text)["data"]) == set(STORE_VARIABLES)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_documented_rule_opens_a_further_port(overlay: str, tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(patches:\n.*?)^```", (MANIFESTS.parent / "docs" / "operations.md").read_text(), re.M | re.S
    )
    manifests = copied(tmp_path)
    file = manifests / "overlays" / overlay / "kustomization.yaml"
    written = yaml.safe_load(file.read_text())
    written["patches"] = [*written.get("patches", []), *yaml.safe_load(block)["patches"]]
    file.write_text(yaml.safe_dump(written))
    assert not any(lets_out(policy, 3128) for policy in policies(rendered(overlay)))
    assert all(lets_out(policy, 3128) for policy in policies(rendered(overlay, manifests)))


def test_the_laptops_object_store_listens_to_the_namespace_and_to_kubeflow() -> None:
    spec = named(rendered("kind"), "NetworkPolicy", "object-store")["spec"]
    (deployment,) = of_kind(rendered("kind"), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    (rule,) = spec["ingress"]
    assert {"podSelector": {}} in rule["from"]
    assert [port["port"] for port in rule["ports"]] == [8333]
