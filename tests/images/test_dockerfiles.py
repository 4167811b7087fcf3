"""What the Dockerfiles and the build command promise, without an engine."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path

import pytest

from images import build, requirements
from pipelines.steps import STEPS

ROOT = Path(__file__).parents[2]
KINDS = sorted(build.KINDS)


def stages(kind: str) -> list[str]:
    text = (ROOT / "images" / kind / "Dockerfile").read_text()
    return re.split(r"^(?=FROM )", text, flags=re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_pinned_by_digest_and_can_be_replaced(kind: str) -> None:
    head, *rest = stages(kind)
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", head, re.MULTILINE)
    assert len(rest) == 2
    assert all(stage.startswith("FROM ${BASE}") for stage in rest)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_stage_runs_as_nobody_special_and_installs_nothing(kind: str) -> None:
    last = stages(kind)[-1]
    assert re.search(r"^USER 1000:0$", last, re.MULTILINE)
    assert "ENTRYPOINT" not in last
    assert "CMD" not in last
    assert not re.search(r"\b(apt|apt-get|pip|gcc|g\+\+) ", last)
    for label in ("title", "description", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in last
    assert "HOME=/tmp" in last


@pytest.mark.parametrize("kind", KINDS)
def test_every_package_is_in_the_lock(kind: str) -> None:
    texts = [(ROOT / name).read_text() for name in requirements.LOCKS]
    lock = {line.split("==")[0].lower() for text in texts for line in text.splitlines()}
    for file in ("packages.txt", "alone.txt"):
        names = {line.split("#")[0].strip() for line in (ROOT / "images" / kind / file).read_text().splitlines()} - {""}
        assert names
        assert {name.lower() for name in names} <= lock
        assert "kfp" not in names


def test_the_gpu_image_installs_the_lists_of_both_and_names_nothing_twice() -> None:
    text = stages("gpu")[1]
    for file in ("packages.txt", "alone.txt"):
        assert f"cpu/{file} gpu/{file}" in text
        names = requirements.listed("gpu", file)
        assert len(names) == len(set(names))
        assert set(requirements.listed("cpu", file)) < set(names)


def test_each_step_is_checked_in_every_image_that_it_may_run_in() -> None:
    assert {name for names in build.KINDS.values() for name in names} == set(STEPS)
    assert all(name in build.KINDS[step.images[0]] for name, step in STEPS.items())
    assert "mine_negatives" in {*build.KINDS["cpu"]} & {*build.KINDS["gpu"]}


def test_the_build_context_holds_no_more_than_is_copied() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert allowed == {
        *requirements.LOCKS,
        "pyproject.toml",
        "setup.py",
        "README.md",
        "LICENSE",
        "images/install.sh",
        "images/cpu",
        "images/gpu",
        "images/wheels",
        "llm_retriever",
        "components",
    }


RECORDER = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
  inspect) echo '["other/llm-retriever-cpu@sha256:1111", "registry.example/team/llm-retriever-{kind}@sha256:abcd"]' ;;
  {failing}) echo "no space left on device"; exit 1 ;;
esac
"""


def recorder(directory: Path, kind: str, failing: str = "nothing") -> tuple[str, Path]:
    """A program in the engine's place that writes down what it is asked."""
    program, log = directory / "engine", directory / "log"
    program.write_text(RECORDER.format(log=log, kind=kind, failing=failing))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program), log


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_records_the_digest_and_keeps_the_other_image(kind: str, tmp_path: Path) -> None:
    engine, log = recorder(tmp_path, kind)
    references = tmp_path / "images.json"
    references.write_text(json.dumps({"cpu": "old-cpu", "gpu": "old-gpu"}))
    options = ["--engine", engine, "--registry", "registry.example/team/", "--tag", "7", "--push", "--images", kind]
    assert build.main([*options, "--references", str(references), "--build-arg", "OFFLINE=1"]) == 0
    name = f"registry.example/team/llm-retriever-{kind}"
    assert json.loads(references.read_text()) == {
        "cpu": "old-cpu",
        "gpu": "old-gpu",
        kind: f"{name}:7@sha256:abcd",
    }
    first, *rest = log.read_text().splitlines()
    assert first.startswith("build ")
    assert "--build-arg OFFLINE=1" in first
    assert f"--tag {name}:7" in first
    imports = [line for line in rest if " -c import " in line]
    assert len(imports) == len(build.IMPORTED[kind])
    rest = rest[len(imports) :]
    helps = [line for line in rest if line.endswith("--help")]
    assert len(helps) == len(build.KINDS[kind])
    assert all("--network=none --read-only" in line and "--user=1000:0" in line for line in helps)
    assert rest[len(helps) :][0] == f"push {name}:7"


def test_without_a_push_the_tag_alone_is_recorded(tmp_path: Path) -> None:
    engine, log = recorder(tmp_path, "cpu")
    references = tmp_path / "images.json"
    assert build.main(["--engine", engine, "--images", "cpu", "--tag", "7", "--references", str(references)]) == 0
    assert json.loads(references.read_text()) == {"cpu": "llm-retriever-cpu:7"}
    assert "push" not in log.read_text()


@pytest.mark.parametrize("failing", ["build", "run", "push"])
def test_a_failure_records_nothing_and_is_told_in_one_line(
    failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, _ = recorder(tmp_path, "cpu", failing)
    references = tmp_path / "images.json"
    options = ["--engine", engine, "--images", "cpu", "--push", "--references", str(references)]
    assert build.main(options) == 1
    assert not references.exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_the_install_script_is_a_plain_shell_script() -> None:
    read = subprocess.run(["sh", "-n", str(ROOT / "images" / "install.sh")], capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")
