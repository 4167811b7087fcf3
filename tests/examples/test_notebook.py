"""The notebook's cells run in their order, on any run's retriever, index and collection; no Jupyter is needed for that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_retriever.indexing.build import build_index
from llm_retriever.settings import IndexSettings
from tests.encoders.test_retriever import write_retriever

NOTEBOOK = Path(__file__).parents[2] / "examples" / "search.ipynb"


@pytest.fixture
def notebook() -> dict[str, Any]:
    return json.loads(NOTEBOOK.read_text())


def test_the_file_is_a_notebook_without_outputs(notebook: dict[str, Any]) -> None:
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)) > 5
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        assert set(cell) == keys | ({"execution_count", "outputs"} if cell["cell_type"] == "code" else set())
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert all(line.endswith("\n") for line in cell["source"][:-1])


def test_the_cells_run_one_after_the_other(
    notebook: dict[str, Any],
    collection_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    retriever, index = write_retriever(tmp_path / "retriever"), tmp_path / "index"
    build_index(retriever, collection_directory, index, IndexSettings(precision="fp32"))
    for name, place in {"RETRIEVER": retriever, "INDEX": index, "COLLECTION": collection_directory}.items():
        monkeypatch.setenv(name, str(place))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    variables: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), variables)
    assert variables["scores"].shape == (18, 10)
    assert len(variables["passages"]) == 2
    shown = capsys.readouterr().out
    assert "llm-ql of random: 64 numbers a vector" in shown
    assert "\n 10  " in shown
    assert f"test: ndcg@10 {variables['figures']['ndcg@10']:.3f} over 18 queries" in shown
