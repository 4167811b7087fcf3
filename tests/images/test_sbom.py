"""What is said to be in the images, and the check of it against a database of advisories."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from images import audit, build, requirements, sbom
from llm_retriever import __version__
from llm_retriever.errors import InputError

ROOT = Path(__file__).parents[2]
KINDS = sorted(build.KINDS)
# What the project is built, tested and submitted with; the images run its steps.
ELSEWHERE = {"kfp", "kfp-kubernetes", "pip", "setuptools", "wheel", "pytest", "ruff", "mypy", "moto", "pip-audit"}
ELSEWHERE |= {"cyclonedx-python-lib", "sentence-transformers", "onnxruntime", "fastmcp", "docker"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both documents, made without an engine."""
    folder = tmp_path_factory.mktemp("sbom")
    assert sbom.main(["--from", "lock", "--output", str(folder)]) == 0
    return folder


def components(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    rows = json.loads((folder / f"{kind}.cdx.json").read_text())["components"]
    found = {row["purl"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def valid(text: str) -> bool:
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_is_valid_and_names_its_image(kind: str, documents: Path) -> None:
    text = (documents / f"{kind}.cdx.json").read_text()
    assert valid(text)
    assert not valid(text.replace('"type": "library"', '"type": "book"'))
    image = json.loads(text)["metadata"]["component"]
    assert (image["name"], image["version"], image["type"]) == (f"llm-retriever-{kind}", __version__, "container")
    assert {"name": "llm-retriever:source", "value": "lock"} in image["properties"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_package_of_the_lists_is_there_at_the_locks_version(kind: str, documents: Path) -> None:
    found, versions = components(documents, kind), requirements.pinned()
    names = requirements.listed(kind, "packages.txt") + requirements.listed(kind, "alone.txt")
    assert len(names) > 10
    names += ["torch", "faiss-cpu"] if kind == "gpu" else []
    for name in names:
        row = found[f"pkg:pypi/{name}@{versions[name]}"]
        assert (requirements.canonical(row["name"]), row["version"]) == (name, versions[name])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_there_that_only_building_testing_and_submitting_need(kind: str, documents: Path) -> None:
    purls = [PackageURL.from_string(purl) for purl in components(documents, kind)]
    names = {purl.name for purl in purls}
    assert names & ELSEWHERE == set()
    assert names & {"torch", "transformers", "deepspeed"} == (
        set() if kind == "cpu" else {"torch", "transformers", "deepspeed"}
    )
    versions = requirements.pinned()
    assert [str(purl) for purl in purls if versions.get(purl.name, purl.version) != purl.version] == []


def test_who_needs_whom_is_told(documents: Path) -> None:
    document = json.loads((documents / "cpu.cdx.json").read_text())
    needs = {row["ref"]: row.get("dependsOn", []) for row in document["dependencies"]}
    versions = requirements.pinned()
    assert f"pkg:pypi/botocore@{versions['botocore']}" in needs[f"pkg:pypi/boto3@{versions['boto3']}"]
    # Installed alone: what pyserini asks for and is not there is not named.
    assert not any("torch" in ref for ref in needs[f"pkg:pypi/pyserini@{versions['pyserini']}"])
    assert set(needs[document["metadata"]["component"]["bom-ref"]]) == set(components(documents, "cpu"))


def test_the_project_is_not_taken_for_a_package_of_the_same_name(documents: Path) -> None:
    assert f"pkg:generic/llm-retriever@{__version__}" in components(documents, "gpu")
    assert "llm-retriever" not in {name for name, _ in audit.packages(documents)}


ENGINE = """#!/bin/sh
echo "WARNING: this engine is a shell script" >&2
echo "$@" > {log}
exec {python} -
"""


def test_an_image_is_asked_for_what_is_installed_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine, log, references = tmp_path / "engine", tmp_path / "log", tmp_path / "images.json"
    engine.write_text(ENGINE.format(log=log, python=sys.executable))
    engine.chmod(engine.stat().st_mode | stat.S_IXUSR)
    references.write_text(json.dumps({"cpu": "registry.example:5000/team/llm-retriever-cpu:7@sha256:abcd"}))
    options = ["--engine", str(engine), "--references", str(references), "--output", str(tmp_path), "--images"]
    assert sbom.main([*options, "cpu"]) == 0
    assert "--network=none --read-only" in log.read_text()
    image = json.loads((tmp_path / "cpu.cdx.json").read_text())["metadata"]["component"]
    assert (image["name"], image["version"]) == ("registry.example:5000/team/llm-retriever-cpu", "7")
    assert image["bom-ref"].endswith("@sha256:abcd")
    # The "image" is this environment.
    found = components(tmp_path, "cpu")
    for name in ("numpy", "boto3", "pytest"):
        assert f"pkg:pypi/{name}@{metadata.version(name)}" in found
    assert f"pkg:generic/python@{sys.version.split()[0]}" in found
    assert sbom.main([*options, "gpu"]) == 2
    assert "make images" in capsys.readouterr().err


def test_debian_packages_are_named_as_advisories_name_them(tmp_path: Path) -> None:
    rows = [{"name": "libc6", "version": "2.36-9+deb12u10", "architecture": "amd64"}]
    told = {"python": "3.11.2", "system": {"ID": "debian", "VERSION_ID": "12"}, "debian": rows, "distributions": []}
    text = sbom.as_json(sbom.document("cpu", told, "llm-retriever-cpu:1", "image"))
    assert valid(text)
    (tmp_path / "cpu.cdx.json").write_text(text)
    found = components(tmp_path, "cpu")
    purls = [PackageURL.from_string(purl) for purl in found if purl.startswith("pkg:deb/")]
    wanted = PackageURL("deb", "debian", "libc6", "2.36-9+deb12u10", {"arch": "amd64", "distro": "debian-12"})
    assert purls == [wanted]
    assert found["pkg:generic/debian@12"]["type"] == "operating-system"


def test_without_an_engine_the_way_round_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    references = tmp_path / "images.json"
    references.write_text(json.dumps({"cpu": "a:1", "gpu": "b:1"}))
    assert sbom.main(["--engine", str(tmp_path / "none"), "--references", str(references)]) == 1
    said = capsys.readouterr().err
    assert "is not installed" in said
    assert "--from lock" in said


class Advisories(BaseHTTPRequestHandler):
    """A database of advisories that knows one, of numpy."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(query)
        hit = query["package"]["name"] == "numpy"
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}]
        affected = [{"package": {"name": "numpy", "ecosystem": "PyPI"}, "ranges": ranges}]
        row = {"id": "PYSEC-1999-1", "aliases": [], "details": "wrong sums", "affected": affected}
        answer = json.dumps({"vulns": [row]} if hit else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *told: Any) -> None:
        """Keeps the terminal quiet."""


@pytest.fixture
def advisories() -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
    """pip-audit's options for the database, and what it was asked."""
    Advisories.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1/query"
        yield ["--vulnerability-service", "osv", "--osv-url", url], Advisories.asked
        server.shutdown()


def test_an_advisory_fails_the_audit_and_names_package_and_hint(
    documents: Path,
    advisories: tuple[list[str], list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, asked = advisories
    assert audit.main(["--sbom", str(documents), *options]) == 1
    held = audit.packages(documents)
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"numpy {metadata.version('numpy')} (cpu, gpu): PYSEC-1999-1, mended in 99.1"
    assert last == f"{len(held)} packages checked, 1 advisories"
    assert {(query["package"]["name"], query["version"]) for query in asked} == set(held)
    assert held["torch", requirements.pinned()["torch"]] == ["gpu"]
    assert audit.main(["--sbom", str(documents), *options, "--ignore-vuln", "PYSEC-1999-1"]) == 0


def test_advisories_out_of_reach_are_not_taken_for_none(documents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = ["--vulnerability-service", "osv", "--osv-url", "http://127.0.0.1:9/v1/query"]
    assert audit.main(["--sbom", str(documents), *closed]) == 2
    said = capsys.readouterr().err
    assert said.startswith("audit: no advisories could be had")
    assert said.count("\n") == 1


def test_packages_that_pip_audit_passes_over_fail_the_audit() -> None:
    clear = {"name": "numpy", "version": "2.4.6", "vulns": []}
    audit.check_all_audited([clear])
    with pytest.raises(InputError, match=r"for 1 of 2 packages \(torch\)"):
        audit.check_all_audited([clear, {"name": "torch", "skip_reason": "Dependency not found on PyPI"}])


def test_an_audit_without_documents_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--sbom", str(tmp_path)]) == 2
    assert "make sbom" in capsys.readouterr().err


def test_make_knows_both_commands() -> None:
    for target in ("sbom", "audit"):
        told = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"-m images.{target}" in told
