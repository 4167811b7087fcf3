"""A retriever with random weights, as tune_retriever writes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llm_retriever import methods
from llm_retriever.models.card import Lineage, RetrieverCard, weights_digest
from tests.conftest import write_backbone


@pytest.fixture(scope="package")
def retriever_directory(tmp_path_factory) -> Path:
    """Not to be changed."""
    directory = tmp_path_factory.mktemp("retriever") / "retriever"
    write_backbone(directory / "model")
    method = dataclasses.replace(methods.method("llm-ql"), query_length=160)
    RetrieverCard.of(method, Lineage("random"), weights=weights_digest(directory / "model")).save(directory)
    return directory
