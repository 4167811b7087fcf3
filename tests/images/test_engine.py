"""Both images, built from their Dockerfiles by a real engine, and the whole pipeline run in them as a cluster would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from packageurl import PackageURL

from images import sbom
from images.requirements import LOCKS, canonical, inventory
from tests.conftest import write_backbone, write_beir
from tests.pipelines.test_local import SMALL

ROOT = Path(__file__).parents[2]
COPIED = (
    "llm_retriever",
    "components",
    "pipelines",
    "images",
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    *LOCKS,
    ".dockerignore",
)
TAG = "test"
PLANTED = "planted-secret-3f9b1c"
# What the first of them waits for: both images are built, all packages of them downloaded.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what images are built from, with this machine's torch wheel put where wheels are preferred."""
    context = tmp_path_factory.mktemp("context")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, context / name)
    wheels = context / "images" / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), "torch==2.13.0"]
    subprocess.run(command, check=True)
    return context


@pytest.fixture(scope="module")
def images(context: Path, base: str) -> Iterator[dict[str, str]]:
    """References of both images, as the build command recorded them."""
    references = context / "references.json"
    arguments = [f"BASE={base}"]
    options = [text for argument in arguments for text in ("--build-arg", argument)]
    command = [sys.executable, "-m", "images.build", "--network", "host", "--tag", TAG, *options]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": PLANTED, "DOCKER_BUILDKIT": "0"}
    done = subprocess.run(
        [*command, "--references", str(references)],
        cwd=context,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(references.read_text())


def in_image(image: str, *command: str) -> subprocess.CompletedProcess[str]:
    restrictions = [
        "--rm",
        "--network=none",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    ]
    return subprocess.run(
        ["docker", "run", *restrictions, image, *command], capture_output=True, text=True, check=False
    )


def test_the_images_hold_neither_kfp_nor_a_compiler_nor_pip(images: dict[str, str]) -> None:
    for image in images.values():
        code = "import importlib.util as u; print([m for m in ('kfp', 'pip', 'setuptools') if u.find_spec(m)])"
        assert in_image(image, "python", "-c", code).stdout.strip() == "[]"
        assert in_image(image, "sh", "-c", "command -v gcc g++ cc").returncode != 0
        assert in_image(image, "id", "-u").stdout.strip() == "1000"


def test_the_cpu_image_does_without_torch(images: dict[str, str]) -> None:
    code = "import importlib.util as u; print(bool(u.find_spec('torch')), bool(u.find_spec('pyserini')))"
    assert in_image(images["cpu"], "python", "-c", code).stdout.split() == ["False", "True"]
    assert in_image(images["gpu"], "python", "-c", code).stdout.split() == ["True", "True"]


def test_what_is_said_to_be_in_the_images_is_in_them(images: dict[str, str], context: Path) -> None:
    for kind, image in images.items():
        assert (
            sbom.main(["--images", kind, "--references", str(context / "references.json"), "--output", str(context)])
            == 0
        )
        rows = json.loads((context / f"{kind}.cdx.json").read_text())["components"]
        held = [PackageURL.from_string(row["purl"]) for row in rows]
        assert {"deb"} == {purl.type for purl in held if purl.name == "libc6"}
        code = "from importlib.metadata import distributions as d; print(*[f'{x.name}@{x.version}' for x in d()])"
        installed = dict(row.split("@") for row in in_image(image, "python", "-c", code).stdout.split())
        named = {(purl.name, purl.version) for purl in held}
        assert {(canonical(name), version) for name, version in installed.items()} - named == set()
        # What follows from the lists alone is what was installed.
        told = inventory(kind)["distributions"]
        assert {canonical(row["name"]): row["version"].partition("+")[0] for row in told} == {
            canonical(name): version.partition("+")[0] for name, version in installed.items()
        }


def test_bad_input_ends_a_container_with_code_2(images: dict[str, str]) -> None:
    done = in_image(
        images["cpu"], "python", "-m", "components.prepare_corpus", "--uri", "/nowhere", "--collection", "/tmp/c"
    )
    assert done.returncode == 2


@pytest.fixture
def island(images: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A network in which there is nothing but an S3 server: a container to join, and what puts a command of ours there."""
    command = ["docker", "run", "--detach", "--rm", "--network=none", images["cpu"], "sleep", "3600"]
    container = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    asked = ["docker", "inspect", "--format", "{{.State.Pid}}", container]
    process = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    inside = ["nsenter", f"--net=/proc/{process}/ns/net"]
    server = subprocess.Popen(
        [*inside, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "5000"], stderr=subprocess.DEVNULL
    )
    try:
        yield container, inside
    finally:
        server.terminate()
        server.wait()
        subprocess.run(["docker", "kill", container], capture_output=True, check=True)


STORE = {
    "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:5000",
    "AWS_ACCESS_KEY_ID": "planted-key-8d21",
    "AWS_SECRET_ACCESS_KEY": PLANTED,
    "AWS_DEFAULT_REGION": "us-east-1",
}
FILL = """
import sys, time, boto3, botocore.exceptions
from llm_retriever.stores.opening import open_store
for _ in range(120):
    try:
        boto3.client("s3").create_bucket(Bucket="models")
        break
    except botocore.exceptions.EndpointConnectionError:
        time.sleep(0.5)
open_store("s3://models/corpus").upload(sys.argv[1])
"""
LOOK = "import sys; from llm_retriever.stores.opening import open_store; open_store('s3://models').download('', sys.argv[1])"


def test_the_whole_pipeline_runs_in_the_images_with_s3_alone_and_leaks_nothing(
    images: dict[str, str], island: tuple[str, list[str]], tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    runs, (container, inside), environment = tmp_path / "build" / "runs", island, {**os.environ, **STORE}
    corpus = write_beir(tmp_path / "corpus")
    subprocess.run([*inside, sys.executable, "-c", FILL, str(corpus)], cwd=ROOT, env=environment, check=True)
    sources = {"corpus_uri": "s3://models/corpus", "backbone": write_backbone(runs / "backbone")}
    sources |= {
        "promote_uri": "s3://models/published",
        "run_checkpoint_uri": "s3://models/checkpoints",
        "promote_first": "any",
    }
    for path in runs.rglob("*"):  # the containers' user is not the one who wrote them
        path.chmod(0o755 if path.is_dir() else 0o644)
    chosen = {f"run_{kind}_image": image for kind, image in images.items()}
    given = [f"{name}={value}" for name, value in {**SMALL, **sources, **chosen}.items()]
    options = ["--in-images", "--network", f"container:{container}", "--root", str(tmp_path / "build")]
    command = [sys.executable, "-m", "pipelines", "run-local", *options, *given]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    subprocess.run(
        [*inside, sys.executable, "-c", LOOK, str(tmp_path / "build" / "s3")], cwd=ROOT, env=environment, check=True
    )
    assert (tmp_path / "build" / "s3" / "published" / "production.json").exists()
    assert "promote: done in " in done.stderr
    (evaluation,) = runs.glob("*/evaluate/evaluation/evaluation.json")
    assert {"retriever", "BM25", "backbone"} <= set(json.loads(evaluation.read_text())["splits"]["test"]["systems"])
    assert evaluation.stat().st_uid == 1000
    assert PLANTED not in done.stdout + done.stderr
    written = [path for path in (tmp_path / "build").rglob("*") if path.is_file()]
    assert len(written) > 30
    assert [path for path in written if PLANTED.encode() in path.read_bytes()] == []
    for image in images.values():
        told = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=True).stdout
        told += subprocess.run(["docker", "history", "--no-trunc", image], capture_output=True, check=True).stdout
        assert PLANTED.encode() not in told


def test_a_step_that_fails_in_its_image_fails_the_run(images: dict[str, str], tmp_path: Path) -> None:
    runs = tmp_path / "build" / "runs"
    runs.mkdir(parents=True)
    chosen = [f"run_{kind}_image={image}" for kind, image in images.items()]
    given = [f"corpus_uri={runs / 'nowhere'}", f"backbone={runs / 'nothing'}", *chosen]
    command = [sys.executable, "-m", "pipelines", "run-local", "--in-images", "--root", str(tmp_path / "build"), *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fingerprint_sources: FAILED" in done.stderr
    assert "prepare_corpus" not in done.stderr
