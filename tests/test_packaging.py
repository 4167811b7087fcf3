"""What an installation of the project's wheel holds, and that its command works where nothing else of the project is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from llm_retriever import __version__
from tests.test_house import STEPS

ROOT = Path(__file__).parents[1]
SOURCES = (
    "llm_retriever",
    "components",
    "pipelines",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
NOT_FOR_SUBMITTING = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "faiss",
    "jnius",
    "pyserini",
    "scipy",
    "sentence_transformers",
)
BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""


def copied(names: tuple[str, ...], target: Path) -> Path:
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target / name)
    return target


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def built(source: Path, target: Path) -> Path:
    """The wheel of a source tree."""
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as an index would: from the source archive, which is made of the repository."""
    folder = copied(SOURCES, tmp_path_factory.mktemp("sources"))
    code = "from setuptools.build_meta import build_sdist; build_sdist('archive')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True)
    (archive,) = (folder / "archive").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return built(source, folder / "wheels")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    pip("install", "--quiet", "--no-deps", "--target", target, wheel)
    return target


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder of somebody who has `pipelines` and `components` of his own."""
    for name in ("pipelines", "components"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "__init__.py").write_text("raise ImportError('somebody else')")
    return tmp_path / "mine"


def called(
    installed: Path, folder: Path, *arguments: str, missing: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The installed command, given in a folder, with this environment's other packages but for some."""
    blocked = folder.parent / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "sitecustomize.py").write_text(BLOCKED.format(names=set(missing)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(blocked), str(installed)])}
    command = [sys.executable, str(installed / "bin" / "llm-retriever"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_brings_one_package_and_all_files_of_what_that_carries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        held = set(opened.namelist())
    assert {name.partition("/")[0] for name in held} == {"llm_retriever", f"llm_retriever-{__version__}.dist-info"}
    within = "llm_retriever/_kubeflow"
    for folder, prefix in (("components", within), ("pipelines", within), ("llm_retriever", ".")):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        wanted = {Path(prefix, path.relative_to(ROOT)).as_posix() for path in files}
        assert wanted - held == set()
    assert [name for name in held if name.endswith(".pyc")] == []


def test_its_command_starts_anywhere(installed: Path, elsewhere: Path) -> None:
    assert called(installed, elsewhere, "--version").stdout == f"llm-retriever {__version__}\n"
    shown = called(installed, elsewhere, "--help", missing=("kfp", "pydantic", "numpy", *NOT_FOR_SUBMITTING))
    assert shown.returncode == 0, shown.stderr
    assert re.search(r"^  submit +start a run$", shown.stdout, re.M)
    assert called(installed, elsewhere, "presets").stdout.startswith("demo-cluster-cpu: ")


def test_a_pipeline_is_compiled_with_the_extra_for_submitting_alone(installed: Path, elsewhere: Path) -> None:
    done = called(installed, elsewhere, "compile", "--preset", "llm-ql-qwen3-0.6b", missing=NOT_FOR_SUBMITTING)
    assert (done.returncode, done.stdout) == (0, "build/train_retriever.yaml\n"), done.stderr
    assert "components.tune_retriever" in (elsewhere / "build" / "train_retriever.yaml").read_text()


def test_steps_of_a_local_run_are_found_too(installed: Path, elsewhere: Path) -> None:
    given = ["corpus_uri=nowhere-at-all", "backbone=nothing"]
    done = called(installed, elsewhere, "run", "--preset", "demo-cpu", *given)
    assert 'fingerprint_sources: nowhere-at-all: field "uri": no such directory' in done.stderr
    assert done.returncode == 2


def test_a_package_that_is_missing_is_named_with_the_extra_that_brings_it(installed: Path, elsewhere: Path) -> None:
    done = called(installed, elsewhere, "compile", missing=("kfp",))
    assert done.returncode == 2
    assert done.stderr.startswith("llm-retriever compile: kfp is not installed; ")
    assert "pip install '.[pipelines]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_images_find_the_steps_without_the_pipelines(tmp_path: Path) -> None:
    lines = re.findall(r"^COPY (.+) \S+$", (ROOT / "images" / "cpu" / "Dockerfile").read_text(), re.M)
    names = [name for line in lines for name in line.split() if (ROOT / name).exists() and name in SOURCES]
    assert "pipelines" not in names
    (tmp_path / "context").mkdir()
    wheel = built(copied(tuple(names), tmp_path / "context"), tmp_path / "wheels")
    site = tmp_path / "site-packages"
    pip("install", "--quiet", "--no-deps", "--target", site, wheel)
    (path,) = re.findall(r"echo (\S+) > .*\.pth", (ROOT / "images" / "install.sh").read_text())
    (site / "steps.pth").write_text(f"{path}\n")
    code = "import importlib, site, sys; site.addsitedir(sys.argv[1])\nfor step in sys.argv[2:]:\n"
    code += "    module = importlib.import_module(f'components.{step}.__main__'); print(module.__file__)"
    environment = {**os.environ, "PYTHONPATH": ""}
    command = [sys.executable, "-c", code, str(site), *STEPS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert [Path(line) for line in done.stdout.splitlines()] == [
        site / "llm_retriever" / "_kubeflow" / "components" / step / "__main__.py" for step in STEPS
    ]
