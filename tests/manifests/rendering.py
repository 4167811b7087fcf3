"""Overlays as `kubectl kustomize` renders them, and what a network policy lets through."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MANIFESTS = Path(__file__).parents[2] / "manifests"
OVERLAYS = sorted(path.parent.name for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
SHARED = {"profile": "my-profile", "standalone": "kubeflow"}
"""Overlays for namespaces that Kubeflow has set up, and the namespace each is written for."""
OWN = [overlay for overlay in OVERLAYS if overlay not in SHARED]
VERSION = "1.32"
CUSTOM = {"LocalQueue"}
Objects = list[dict[str, Any]]
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which renders overlays, is not installed"
)


def kubectl(*arguments: str) -> str:
    """Standard output of a command that needs no cluster."""
    return subprocess.run(["kubectl", *arguments], check=True, capture_output=True, text=True).stdout


def rendered(overlay: str, manifests: Path = MANIFESTS) -> Objects:
    return list(yaml.safe_load_all(kubectl("kustomize", str(manifests / "overlays" / overlay))))


def copied(folder: Path) -> Path:
    """The manifests in a folder where a test may change them."""
    shutil.copytree(MANIFESTS, folder / "manifests")
    return folder / "manifests"


def of_kind(objects: Objects, kind: str) -> Objects:
    return [found for found in objects if found["kind"] == kind]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    (found,) = [found for found in of_kind(objects, kind) if found["metadata"]["name"] == name]
    return found


def lets_out(policy: dict[str, Any], port: int, namespace: str = "", protocol: str = "TCP") -> bool:
    """Whether a pod under the policy may call a port; without a namespace, one outside the cluster or on its nodes."""
    for rule in policy["spec"]["egress"]:
        peers = rule.get("to")
        reached = peers is None or any(_selects(peer, namespace) for peer in peers)
        if reached and any((port, protocol) == (p["port"], p["protocol"]) for p in rule.get("ports", [])):
            return True
    return False


def _selects(peer: dict[str, Any], namespace: str) -> bool:
    labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
    return bool(namespace) and labels == {"kubernetes.io/metadata.name": namespace}
