"""Writes each component's README from its declaration, so that the two never differ."""

from __future__ import annotations

from llm_retriever import files
from llm_retriever.files.markdown import table
from llm_retriever.settings import Parameter, parameters
from pipelines.steps import FOLDER, STEPS, component_of


def readme(name: str) -> str:
    """Renders the README of one step, in Markdown."""
    step = STEPS[name]
    summary = component_of(name).description.split("\n\n")[0]
    sections = [
        f"# {name}\n\n{summary}\n",
        _table(
            "Inputs",
            {n: ("artifact", m) for n, m in step.inputs.items()}
            | {f"{n}_NAME": ("artifacts", m) for n, m in step.collected.items()},
        ),
        _table(
            "Outputs",
            {n: ("artifact", m) for n, m in step.outputs.items()}
            | {n: ("parameter", m) for n, m in step.results.items()},
        ),
        _settings(list(parameters(step.settings).values())),
        f"## By hand\n\n```\npython -m components.{name} --help\n```\n\nThe flags are the names above with `-` for `_`. "
        + "".join(f"`{n}_NAME` is `--{n}s NAME=PATH NAME=PATH …`. " for n in step.collected)
        + "Exit codes: 0 done, 2 bad input (one line says what and where), 1 anything else; `--debug` shows the traceback.\n",
    ]
    return "\n".join(section for section in sections if section)


def _table(title: str, rows: dict[str, tuple[str, str]]) -> str:
    cells = [[f"`{name}`", kind, _cell(meaning)] for name, (kind, meaning) in rows.items()]
    return _section(title, ["name", "kind", "meaning"], cells) if rows else ""


def _settings(settings: list[Parameter]) -> str:
    cells = [[f"`{p.name}`", p.type.__name__, f"`{p.default!r}`", _cell(_help(p))] for p in settings]
    return _section("Settings", ["name", "type", "default", "meaning"], cells)


def _section(title: str, head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([f"## {title}\n", *table(head, rows, left=len(head)), ""])


def _help(parameter: Parameter) -> str:
    choices = ", ".join(f"`{choice!r}`" for choice in parameter.choices)
    return f"{parameter.help} One of {choices}." if choices else parameter.help


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for step_name in STEPS:
        files.write_text(FOLDER / step_name / "README.md", readme(step_name))
