"""The page on extending: its code is put into a copy of the project, which then trains, encodes and compiles with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModel

from llm_retriever.data.collection import Collection

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|diff) ?(\S*)\n(.*?)^```$", re.DOTALL | re.M)
SECTIONS = re.findall(r"^## ([^\n:]+): (\d+) files?\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.M)


def changed(text: str, difference: str) -> str:
    """A file's text after a block of the page: its lines with a space are there once, and those with a plus are added."""
    lines = difference.splitlines(keepends=True)
    assert {line[0] for line in lines if line.strip()} == {" ", "+"}
    before = "".join(line[1:] for line in lines if line.startswith(" "))
    assert text.count(before) == 1, f"the page shows lines that are not there:\n{before}"
    return text.replace(before, "".join(line[1:] for line in lines))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with everything that the page adds."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("llm_retriever", "components", "pipelines"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for kind, name, code in BLOCK.findall(PAGE):
        if name:
            target = copy / name
            assert target.exists() == (kind == "diff"), name
            target.parent.mkdir(exist_ok=True)
            target.write_text(changed(target.read_text(), code) if kind == "diff" else code)
    return copy


def python(project: Path, *arguments: str) -> str:
    """What a Python of the copied project prints."""
    path = os.pathsep.join((str(project), str(ROOT)))
    environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "10000"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=project, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_counts_the_files_of_every_example() -> None:
    counted = {title: int(number) for title, number, _ in SECTIONS}
    assert counted == {"An objective of stage one": 2, "A pooling": 1, "A step": 4}
    assert counted == {title: len({name for _, name, _ in BLOCK.findall(text) if name}) for title, _, text in SECTIONS}


@pytest.mark.slow
def test_the_objective_trains_and_is_told_of_where_settings_are(
    project: Path, backbone_directory: Path, collection_directory: Path, training_set_directory: Path, tmp_path: Path
) -> None:
    given = {"backbone": backbone_directory, "collection": collection_directory, "training_set": training_set_directory}
    given |= {name: tmp_path / name for name in ("adapted", "curves", "metrics")}
    given |= {"method": "next_token", "passage_length": 60, "batch_size": 8, "micro_batch_size": 4, "max_steps": 12}
    given |= {"learning_rate": 2e-3, "precision": "fp32", "processes": 1, "restarts": 0}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    python(project, "-m", "components.adapt_backbone", *flags)
    log = json.loads((tmp_path / "adapted" / "training_log.json").read_text())["steps"]
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    (stage,) = json.loads((tmp_path / "adapted" / "backbone.json").read_text())["stages"]
    assert (stage["stage"], stage["settings"]["passage_length"]) == ("next_token", 60)
    told = " ".join(python(project, "-m", "components.adapt_backbone", "--help").split())
    assert "next_token = continued pre-training;" in told
    assert "next_token: tokens of a passage, prompt included;" in told


@pytest.mark.slow
def test_the_pooling_is_that_of_our_retrievers(project: Path, backbone_directory: Path) -> None:
    (code,) = [code for _, name, code in BLOCK.findall(PAGE) if not name]
    (project / "build").mkdir(exist_ok=True)
    (project / "build" / "backbone").symlink_to(backbone_directory)
    vector = np.array(python(project, "-c", code).split(), dtype=np.float32)
    model = AutoModel.from_pretrained(backbone_directory, dtype=torch.float32).eval()
    assert vector.shape == (model.config.hidden_size,)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-5)


@pytest.mark.slow
def test_the_pooling_is_that_of_published_encoders(project: Path, tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.encoders import models, test_sentences
place = Path({str(tmp_path)!r})
bert = models.bert(place / "model")
test_sentences.assert_same_vectors(test_sentences.directory_of(place / "encoder", bert, mode="max"))
"""
    python(project, "-c", program)


def test_the_step_runs_by_hand(project: Path, collection_directory: Path, tmp_path: Path) -> None:
    files = ["--collection", str(collection_directory), "--profile", str(tmp_path / "profile.md")]
    for groups in ("3", "2"):  # the second time over what the first one wrote
        python(project, "-m", "components.profile_corpus", *files, "--groups", groups)
    *_, half, whole = (tmp_path / "profile.md").read_text().splitlines()
    lengths = sorted(len(passage.text) for passage in Collection.open(collection_directory).passages())
    assert half == f"| 1 of 2 | {lengths[len(lengths) // 2 - 1]} |"
    assert whole == f"| 2 of 2 | {lengths[-1]} |"


@pytest.mark.slow
def test_the_step_is_compiled_into_the_pipeline(project: Path) -> None:
    python(project, "-m", "pipelines", "compile", "--output", "pipeline.yaml")
    pipeline, platform = yaml.safe_load_all((project / "pipeline.yaml").read_text())
    task = pipeline["root"]["dag"]["tasks"]["profile-corpus"]
    assert task["inputs"]["artifacts"]["collection"]["taskOutputArtifact"]["producerTask"] == "prepare-corpus"
    assert "groups = 4" in pipeline["root"]["inputDefinitions"]["parameters"]["profile_options"]["description"]
    container = pipeline["deploymentSpec"]["executors"]["exec-profile-corpus"]["container"]
    assert container["resources"]["resourceMemoryRequest"] == "2Gi"
    assert "exec-profile-corpus" in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    python(project, "-m", "pipelines", "compile", "rerun_profile_corpus", "--output", "rerun.yaml")
