"""Writes docs/api.md, the reference of what users import, from the code's own docstrings: `python -m tests.api_reference`."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

from llm_retriever import files

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAD = """\
# API

What programs import; everything else may change from release to release. Written by `make readmes` from the docstrings.
`InputError` is raised for whatever a caller can get wrong, and says in one line what and where.
"""
CONTENTS = {
    "Use a retriever": (
        "encoders:load",
        "encoders.retriever:Retriever load merged on_backbone encode_queries encode_passages dimension identity",
        "encoders.interface:Encoder name dimension normalised encode_queries encode_passages identity",
        "models.card:RetrieverCard load save digest",
        "exporting.export:export_merged",
        "exporting.export:export_sentence_transformers",
    ),
    "Search": (
        "indexing.build:build_index",
        "indexing.build:write_index",
        "indexing.index:Index open search verify",
        "indexing.hybrid.search:HybridSearcher load search",
    ),
    "Data": (
        "data.preparation:prepare",
        "data.collection:Collection open passages queries qrels lookup articles own_passages",
        "data.collection:Passage",
        "data.training_set:TrainingSet open examples digest",
        "data.training_set:TrainingExample",
        "data.training_set:Negative",
        "data.training_set:write_training_set",
    ),
    "Train": (
        "adaptation.backbone:fetch",
        "mining.negatives:mine",
        "adaptation.adapt:adapt",
        "contrastive.tuning:tune",
    ),
    "Evaluate": (
        "evaluation.evaluate:evaluate",
        "metrics.measures:parse_measures",
        "metrics.measures:Measure name label meaning",
        "metrics.measures:score_queries",
        "metrics.measures:means",
        "metrics.significance:compare",
        "metrics.significance:Comparison verdict",
        "metrics.runs:read_run",
        "metrics.runs:write_run",
    ),
    "Publish and store": (
        "promotion.promote:promote",
        "stores.registry:Registry production versions named roll_back prune",
        "stores.opening:open_store",
        "stores.opening:fetched",
        "stores.opening:publish",
        "stores.interface:Store list exists read write delete upload download",
    ),
    "Settings and errors": ("settings.parameters:build", "errors:InputError"),
}
"""Sections of the page: `module:name` below llm_retriever, and the members that are shown of a class."""


def page() -> str:
    """The whole reference, in Markdown."""
    library = griffe.load("llm_retriever", search_paths=[ROOT], docstring_parser="google")
    sections = (
        "\n".join([f"## {title}\n", *(entry(library, name) for name in names)]) for title, names in CONTENTS.items()
    )
    return "\n".join([HEAD, *sections, settings()])


def entry(library: Any, named: str) -> str:
    """A function, or a class with some of its members, inherited ones too."""
    place, *members = named.split()
    module, name = place.split(":")
    thing = library[module][name]
    lines = [f"### {name}\n", f"`from llm_retriever.{module} import {name}`\n"]
    lines += [signature(thing), *markdown(thing)] if thing.is_function else markdown(thing)
    for member in members:
        found = thing.all_members[member]
        found = found.final_target if found.is_alias else found
        lines += [f"#### {name}.{member}\n", signature(found), *markdown(found)]
    return "\n".join(lines)


def signature(thing: Any) -> str:
    """The head of a function or a property as it stands in the source, as a code block."""
    head = textwrap.dedent(thing.source).partition('"""')[0].strip()
    return f"```python\n{head.removesuffix(':')}\n```\n"


def markdown(thing: Any) -> Iterator[str]:
    """A docstring, section by section."""
    assert thing.docstring, f"{thing.path} has no docstring"
    for section in thing.docstring.parsed:
        match section.kind:
            case griffe.DocstringSectionKind.text:
                yield section.value + "\n"
            case griffe.DocstringSectionKind.admonition:
                yield f"```python\n{section.value.description}\n```\n"
            case griffe.DocstringSectionKind.returns | griffe.DocstringSectionKind.yields:
                yield f"**Returns**\n\n{' '.join(value.description for value in section.value)}\n"
            case kind:
                rows = [
                    f"- `{getattr(v, 'name', None) or v.annotation}`: {_indented(v.description)}" for v in section.value
                ]
                yield "\n".join([f"**{kind.value.title()}**\n", *rows, ""])


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def settings() -> str:
    """The table of the settings classes, with where their fields are described."""
    rows = ["| class | of the step |", "|---|---|"]
    for path in sorted(PAGE.parents[1].glob("components/*/__main__.py")):
        step = importlib.import_module(f"components.{path.parent.name}.__main__").STEP
        rows.append(
            f"| `{step.settings.__name__}` | [{step.name}](../components/{path.parent.name}/README.md#settings) |"
        )
    told = "`from llm_retriever.settings import …`; the fields, with defaults and meaning, are in the READMEs of the steps.\n"
    return "\n".join(["### Settings classes\n", told, *rows, ""])


if __name__ == "__main__":
    files.write_text(PAGE, page())
