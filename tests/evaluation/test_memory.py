"""However many systems an evaluation has, one model is in memory at a time."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from llm_retriever.indexing.build import build_index
from llm_retriever.settings import EvaluationSettings, IndexSettings
from tests.conftest import seal, write_beir
from tests.evaluation.test_baselines import another_retriever
from tests.evaluation.test_evaluate import run
from tests.evaluation.test_production import published


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """For every model that is loaded from now on, the directories of those that are still in memory then."""
    found, alive = list[list[str]](), weakref.WeakSet[PreTrainedModel]()
    load = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def seen(cls: Any, directory: Any, *rest: Any, **named: Any) -> Any:
        found.append([model.name_or_path for model in alive])
        result = load(cls, directory, *rest, **named)
        alive.add(result[0] if isinstance(result, tuple) else result)
        return result

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(seen))
    return found


@pytest.mark.slow
def test_each_model_is_gone_before_the_next_one_is_loaded(
    asking_inputs: dict[str, Path], tmp_path: Path, loads: list[list[str]]
) -> None:
    theirs = tmp_path / "in"
    another_retriever(asking_inputs, theirs / "retriever")
    old = asking_inputs | {"collection": theirs / "collection"}
    shutil.copytree(asking_inputs["collection"], old["collection"])
    queries = old["collection"] / "queries.jsonl"
    queries.write_text(queries.read_text().replace('"text": "', '"text": "now ', 1))
    seal(old["collection"])
    build_index(theirs / "retriever", old["collection"], theirs / "index", IndexSettings(precision="bf16"))
    version = published(str(tmp_path / "published"), theirs / "retriever", theirs / "index")
    loads.clear()
    extra = {"rerank_depth": 3, "attention_queries": 2, "production_uri": version}
    encoders = f"one={theirs / 'retriever'},two={asking_inputs['retriever']}"
    zero_shot = str(write_beir(tmp_path / "sources" / "letters", 15))
    _, content = run(asking_inputs, tmp_path, encoders=encoders, zero_shot=zero_shot, **extra)
    assert content["production"]["reused"]
    assert {"one", "two", "BM25+QL", "production", "backbone"} <= content["systems"].keys()
    assert len(content["attention"]["models"]) == 2
    # The retriever, production in two arithmetics, the backbone, two encoders, re-ranking, attention before and after.
    assert loads == [[]] * 9


@pytest.mark.slow
def test_the_pictures_of_attention_are_not_made_unless_asked_for(
    asking_inputs: dict[str, Path], tmp_path: Path, loads: list[list[str]]
) -> None:
    assert EvaluationSettings().attention_queries == 0
    _, content = run(asking_inputs, tmp_path)
    assert "attention" not in content
    assert loads == [[]] * 2
