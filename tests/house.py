"""The house measured: rooms, who imports whom, and what is long. `python -m tests.house` prints it; `test_house.py` asserts it.

A **room** is a folder of `llm_retriever` (with the folders in it), a loose file at its top, or one of the folders beside it. The
**face** is no room: loose files that only the face itself imports, such as `__main__.py` or a file that says a new name.

An **import** is one file naming another, at the top of the file or inside a function. What stands under `TYPE_CHECKING` is
listed apart and counts for nothing: it is never run.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[1]
LIBRARY = "llm_retriever"
BESIDE = ("pipelines", "components", "images", "benchmarks")
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "architecture.svg"

Where = Literal["top", "function", "typing"]
Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Import:
    """One file of the project naming another, both by their modules' dotted names."""

    source: str
    target: str
    where: Where


@dataclass(frozen=True)
class House:
    """The Python files of a project.

    Attributes:
        root: The folder that holds the library and the folders beside it.
        files: Path of every module, by its dotted name; a package goes by its own name, without `__init__`.
    """

    root: Path
    files: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path = ROOT) -> House:
        """Reads a project."""
        paths = (path for top in (LIBRARY, *BESIDE) for path in sorted((root / top).rglob("*.py")))
        return cls(root, {_module(path.relative_to(root)): path for path in paths})

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Every module, parsed."""
        return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in self.files.items()}

    @cached_property
    def imports(self) -> list[Import]:
        """Every import of one file by another."""
        return [
            Import(name, target, where)
            for name, tree in self.trees.items()
            for node, where in _statements(tree)
            for target in self._targets(name, node)
            if target != name
        ]

    def _targets(self, source: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in self.files)
            return
        module = self._absolute(source, node)
        for alias in node.names:
            inner = f"{module}.{alias.name}"
            if inner in self.files:
                yield inner
            elif module in self.files:
                yield module

    def _absolute(self, source: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self.files[source].name == "__init__.py"
        above = source.split(".")[: len(source.split(".")) - node.level + is_package]
        return ".".join([*above, *([node.module] if node.module else [])])

    @cached_property
    def file_graph(self) -> dict[str, set[str]]:
        """What each file imports, at its top or inside functions."""
        graph: dict[str, set[str]] = {name: set() for name in self.files}
        for i in self.imports:
            if i.where != "typing":
                graph[i.source].add(i.target)
        return graph

    @cached_property
    def face(self) -> set[str]:
        """Loose files of the library that only the face imports."""
        loose = {name for name in self.files if name.startswith(f"{LIBRARY}.") and self._is_loose(name)}
        importers: dict[str, set[str]] = defaultdict(set)
        for source, targets in self.file_graph.items():
            for target in targets:
                importers[target].add(source)
        face = {LIBRARY}
        while more := {name for name in loose - face if importers[name] <= face | {name}}:
            face |= more
        return face

    def _is_loose(self, module: str) -> bool:
        return module.count(".") == 1 and self.files[module].name != "__init__.py"

    def room(self, module: str) -> str | None:
        """The room that a module is in; None for the face."""
        if module in self.face:
            return None
        parts = module.split(".")
        return parts[1] if parts[0] == LIBRARY else parts[0]

    @cached_property
    def rooms(self) -> dict[str, set[str]]:
        """What each room imports, at the top of its files or inside functions."""
        graph: dict[str, set[str]] = {room: set() for name in self.files if (room := self.room(name))}
        for source, targets in self.file_graph.items():
            here = self.room(source)
            there = {room for target in targets if (room := self.room(target))}
            if here:
                graph[here] |= there - {here}
        return graph

    def at_the_top(self) -> list[str]:
        """Names of the Python files that lie loose at the library's top."""
        return sorted(path.name for path in (self.root / LIBRARY).glob("*.py"))

    def lines(self) -> dict[str, int]:
        """Lines of each file, by its path below the root."""
        return {
            str(path.relative_to(self.root)): len(path.read_text(encoding="utf-8").splitlines())
            for path in self.files.values()
        }

    def functions(self) -> dict[str, int]:
        """Lines of each function, decorators left out, by its module and name."""
        return {
            f"{name}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
            for name, tree in self.trees.items()
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _statements(node: ast.AST, where: Where = "top") -> Iterator[tuple[ast.Import | ast.ImportFrom, Where]]:
    """The import statements below a node, and where they stand."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, where
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), "typing")
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), where)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and where == "top":
            yield from _statements(child, "function")
        else:
            yield from _statements(child, where)


def reachable(graph: Graph, start: str) -> set[str]:
    """What can be reached from a node by at least one arrow."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def circles(graph: Graph) -> list[list[str]]:
    """Largest groups of nodes that all reach each other."""
    reach = {name: reachable(graph, name) for name in graph}
    groups = {tuple(sorted(o for o in reach[n] if n in reach[o])) for n in graph if n in reach[n]}
    return sorted(map(list, groups))


def floors(graph: Graph) -> dict[str, int]:
    """Floor of each node: 0 where it imports nothing, else one above the highest that it imports; a circle is one floor."""
    reach = {name: reachable(graph, name) for name in graph}
    found: dict[str, int] = {}
    # Whoever reaches more nodes stands higher, so what is below is known first.
    for name in sorted(graph, key=lambda n: len(reach[n] | {n})):
        below = [found[other] for other in reach[name] if name not in reach[other]]
        found[name] = max(below, default=-1) + 1
    return found


def backward(graph: Graph, order: list[str]) -> list[tuple[str, str]]:
    """Arrows from a node to one that stands later in the order, that is, higher up; a node that is not in it stands lowest."""
    place = {name: number for number, name in enumerate(order)}
    return sorted((a, b) for a, targets in graph.items() for b in targets if place.get(b, -1) > place.get(a, -1))


def stated_order(page: Path = PAGE) -> list[str]:
    """The rooms from the ground up, as the table under `## Rooms` of the page of the architecture lists them."""
    section = re.split(r"^## ", page.read_text(encoding="utf-8").partition("\n## Rooms\n")[2], flags=re.M)[0]
    return [room for row in re.findall(r"^\| ([^|]+) \|", section, re.M) for room in re.findall(r"`(\w+)/?`", row)]


def drawn(picture: Path = PICTURE) -> list[list[str]]:
    """The rows of rooms in the picture, from the ground up."""
    found = re.findall(
        r'class="(?:room|beside)" x="\d+" y="(\d+)"[^>]*/><text[^>]*>(\w+)<', picture.read_text(encoding="utf-8")
    )
    heights = sorted({int(y) for y, _ in found}, reverse=True)
    return [[name for y, name in found if int(y) == height] for height in heights]


def report(house: House, order: list[str]) -> Iterator[str]:
    """The measures, one a line."""
    by_floor: dict[int, list[str]] = defaultdict(list)
    for room, floor in floors(house.rooms).items():
        by_floor[floor].append(room)
    yield f"rooms: {len(house.rooms)}, on {len(by_floor)} floors; the face: {', '.join(sorted(house.face))}"
    yield from (f"  {floor:>2}  {' '.join(sorted(rooms))}" for floor, rooms in sorted(by_floor.items(), reverse=True))
    yield f"arrows between rooms: {sum(map(len, house.rooms.values()))}"
    yield from _listed("arrows that run back up", [f"{a} -> {b}" for a, b in backward(house.rooms, order)])
    yield from _listed("circles of rooms", map(" ".join, circles(house.rooms)))
    yield from _listed("circles of files", map(" ".join, circles(house.file_graph)))
    counts = {where: sum(i.where == where for i in house.imports) for where in ("top", "function", "typing")}
    yield "imports of files: {top} at the top, {function} inside functions, {typing} for types alone".format(**counts)
    yield from _listed("files at the library's top", house.at_the_top())
    tops: dict[str, int] = defaultdict(int)
    for path, number in house.lines().items():
        tops[path.partition("/")[0]] += number
    yield f"product lines: {sum(tops.values())} ({', '.join(f'{top} {number}' for top, number in tops.items())})"
    yield from _listed("longest files", _longest(house.lines()), counted=False)
    yield from _listed("longest functions", _longest(house.functions()), counted=False)


def _listed(title: str, rows: Iterable[str], *, counted: bool = True) -> Iterator[str]:
    rows = list(rows)
    yield f"{title}: {len(rows)}" if counted else f"{title}:"
    yield from (f"  {row}" for row in rows)


def _longest(lines: Mapping[str, int], number: int = 8) -> list[str]:
    return [f"{lines[name]:>4}  {name}" for name in sorted(lines, key=lambda n: -lines[n])[:number]]


if __name__ == "__main__":
    print(*report(House.of(), stated_order()), sep="\n")
