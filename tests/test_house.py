"""The rules of the house: who may import whom, and what must not be loaded when a step starts."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import LIBRARY, PAGE, PICTURE, House, backward, circles, drawn, floors, report, stated_order

ROOT = Path(__file__).parents[1]
STEPS = sorted(path.parent.name for path in ROOT.glob("components/*/component.py"))
HEAVY = {
    "jinja2",
    "pytrec_eval",
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


def imports(path: Path) -> Iterator[str]:
    """Full names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def house() -> House:
    return House.of()


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


def test_rooms_do_not_import_each_other_in_circles(house: House) -> None:
    assert circles(house.rooms) == []


def test_files_do_not_import_each_other_in_circles(house: House) -> None:
    assert circles(house.file_graph) == []


def test_there_are_few_rooms_and_few_loose_files(house: House) -> None:
    assert len(house.rooms) <= 28
    assert len(house.at_the_top()) <= 10


def test_rooms_import_what_stands_below_them(house: House) -> None:
    assert sorted(stated_order()) == sorted(house.rooms), "docs/architecture.md lists other rooms"
    assert len(backward(house.rooms, stated_order())) <= 3


def test_the_picture_has_the_rooms_of_the_page_in_its_order() -> None:
    place = {room: number for number, room in enumerate(stated_order())}
    rows = [sorted(row, key=place.__getitem__) for row in drawn()]
    assert [room for row in rows for room in row] == stated_order()


def test_the_page_and_the_picture_name_modules_that_there_are(house: House) -> None:
    texts = PAGE.read_text() + PICTURE.read_text()
    named = {name for name in re.findall(r"[`>]([a-z]\w+/\w+)[`<]", texts) if not name.startswith("components")}
    assert len(named) > 15
    assert [name for name in sorted(named) if f"{LIBRARY}.{name.replace('/', '.')}" not in house.files] == []


MADE_UP = {
    "llm_retriever/__init__.py": "",
    "llm_retriever/__main__.py": "from llm_retriever import console",
    "llm_retriever/console.py": "from llm_retriever.upper import start",
    "llm_retriever/old_name.py": "raise ImportError('it is upper now')",
    "llm_retriever/errors.py": "import llm_retriever",
    "llm_retriever/lower/__init__.py": "from ..errors import Wrong",
    "llm_retriever/lower/first.py": "def late():\n    from . import second",
    "llm_retriever/lower/second.py": "from llm_retriever.lower.first import late",
    "llm_retriever/lower/typed.py": "if TYPE_CHECKING:\n    from llm_retriever.upper import start",
    "llm_retriever/upper/__init__.py": "from llm_retriever.lower import first, anything\nimport json",
    "llm_retriever/upper/inner/deep.py": "class A:\n    def f(self):\n        import pipelines.run",
    "pipelines/run.py": "from llm_retriever.upper.inner import deep",
}


@pytest.fixture
def made_up(tmp_path: Path) -> House:
    for name, text in MADE_UP.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return House.of(tmp_path)


def test_a_room_is_a_folder_or_a_loose_file_that_others_import(made_up: House) -> None:
    assert made_up.rooms.keys() == {"errors", "lower", "upper", "pipelines"}
    face = {"llm_retriever", "llm_retriever.__main__", "llm_retriever.console", "llm_retriever.old_name"}
    assert made_up.face == face
    assert made_up.at_the_top() == ["__init__.py", "__main__.py", "console.py", "errors.py", "old_name.py"]


def test_imports_count_within_functions_and_not_for_types_alone(made_up: House) -> None:
    assert made_up.rooms["lower"] == {"errors"}
    assert made_up.rooms["upper"] == {"lower", "pipelines"}
    places = {(i.source, i.target): i.where for i in made_up.imports}
    assert places["llm_retriever.lower.typed", "llm_retriever.upper"] == "typing"
    assert places["llm_retriever.upper.inner.deep", "pipelines.run"] == "function"
    assert places["llm_retriever.upper", "llm_retriever.lower"] == "top"  # `anything` is in its __init__


def test_circles_and_arrows_back_up_are_found(made_up: House) -> None:
    assert circles(made_up.rooms) == [["pipelines", "upper"]]
    assert circles(made_up.file_graph) == [
        ["llm_retriever.lower.first", "llm_retriever.lower.second"],
        ["llm_retriever.upper.inner.deep", "pipelines.run"],
    ]
    assert backward(made_up.rooms, ["errors", "lower", "upper", "pipelines"]) == [("upper", "pipelines")]
    assert floors(made_up.rooms) == {"errors": 0, "lower": 1, "upper": 2, "pipelines": 2}


def test_the_measures_are_printed(made_up: House) -> None:
    text = "\n".join(report(made_up, ["errors", "lower", "upper", "pipelines"]))
    for line in (
        "arrows between rooms: 4",
        "arrows that run back up: 1\n  upper -> pipelines",
        "circles of files: 2",
        "  2  pipelines upper",
        "product lines: 17 (llm_retriever 16, pipelines 1)",
        "longest functions:\n     2  llm_retriever.lower.first:1 late",
    ):
        assert line in text


@pytest.mark.parametrize("step", STEPS)
def test_a_step_starts_without_loading_anything_heavy(step: str) -> None:
    program = f"import sys, components.{step}.__main__ as m; m.STEP.parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert HEAVY & set(loaded) == set()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_its_three_files(step: str) -> None:
    folder = ROOT / "components" / step
    assert [name for name in ("component.py", "__main__.py", "README.md") if not (folder / name).is_file()] == []
