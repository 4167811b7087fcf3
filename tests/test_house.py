"""The rules of the house: who may import whom, and what must not be loaded when a step starts."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = sorted(path.parent.name for path in ROOT.glob("components/*/component.py"))
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "pyserini",
    "jnius",
    "faiss",
    "kfp",
    "scipy",
    "matplotlib",
    "pandas",
}


def imports(path: Path, *, at_start_only: bool = False) -> Iterator[str]:
    """Full names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_start_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def offenders(pattern: str, forbidden: set[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted(ROOT.glob(pattern))
        for name in imports(path)
        if name.split(".")[0] in forbidden
    ]


def test_the_library_knows_nothing_of_kubeflow() -> None:
    assert offenders("llm_retriever/**/*.py", {"kfp", "components", "pipelines"}) == []


def test_programs_in_containers_do_not_need_kfp() -> None:
    assert offenders("components/*/__main__.py", {"kfp", "pipelines"}) == []
    assert offenders("components/entrypoint.py", {"kfp", "pipelines"}) == []


def test_what_kubeflow_sees_does_not_need_torch() -> None:
    assert offenders("components/*/component.py", {"torch", "transformers"}) == []
    assert offenders("pipelines/**/*.py", {"torch", "transformers"}) == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in ROOT.glob("llm_retriever/**/*.py")}
    needs = {name: {n for n in imports(path, at_start_only=True) if n in files} for name, path in files.items()}

    def reaches(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in needs[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    assert [name for name in files if name in reaches(name)] == []


@pytest.mark.parametrize("step", STEPS)
def test_a_step_starts_without_loading_anything_heavy(step: str) -> None:
    program = f"import sys, components.{step}.__main__ as m; m.STEP.parser(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert HEAVY & set(loaded) == set()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_its_three_files(step: str) -> None:
    folder = ROOT / "components" / step
    assert [name for name in ("component.py", "__main__.py", "README.md") if not (folder / name).is_file()] == []
