"""An evaluation knows its own figures again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_retriever import files
from llm_retriever.errors import InputError
from llm_retriever.metrics.content import check_content, sealed
from tests.evaluation.test_comparison import evaluation


def test_a_sealed_evaluation_is_what_was_written_whatever_its_order_on_disk(tmp_path: Path) -> None:
    content = sealed(evaluation(0.5, 3))
    (tmp_path / "evaluation.json").write_text(json.dumps(content, sort_keys=True, indent=1))
    check_content(files.read_json(tmp_path / "evaluation.json"), "evaluation.json")


def moved(content: dict[str, Any]) -> None:
    content["splits"]["test"]["systems"]["retriever"]["mrr@10"] += 1e-6


def dropped(content: dict[str, Any]) -> None:
    del content["splits"]["test"]["per_query"]["retriever"]["q1"], content["splits"]["test"]["per_query"]["BM25"]["q1"]


@pytest.mark.parametrize("change", [moved, dropped, lambda content: content.update(depth=101)])
def test_any_change_of_a_figure_is_noticed(change: Any) -> None:
    content = sealed(evaluation(0.5, 3))
    change(content)
    with pytest.raises(InputError, match=r'evaluation\.json: field "checksum": was changed since it was written'):
        check_content(content, "evaluation.json")
