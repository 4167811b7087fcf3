"""docs/api.md says what the docstrings say, and knows what the README shows."""

from __future__ import annotations

import re

from tests.api_reference import PAGE, ROOT, page


def test_the_reference_is_current() -> None:
    assert PAGE.read_text() == page(), "run `make readmes`"


def test_what_the_readme_and_the_examples_import_is_in_the_reference() -> None:
    shown = [ROOT / "README.md", *(ROOT / "examples").rglob("*.md"), *(ROOT / "examples").rglob("*.ipynb")]
    imports = {line for path in shown for line in re.findall(r"from llm_retriever\S* import \w+", path.read_text())}
    assert len(imports) > 1
    assert [line for line in sorted(imports) if f"`{line}`" not in PAGE.read_text()] == []
