"""A retriever with random weights, and collections made of given passages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_retriever import methods
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.models.card import Lineage, RetrieverCard, weights_digest
from llm_retriever.settings import CorpusSettings
from tests.conftest import write_backbone, write_beir


@pytest.fixture(scope="package")
def retriever_directory(tmp_path_factory) -> Path:
    """A retriever as tune_retriever writes it; not to be changed."""
    directory = tmp_path_factory.mktemp("retriever") / "retriever"
    write_backbone(directory / "model")
    # The small tokenizer needs 100 tokens for the query's prompt alone.
    method = dataclasses.replace(methods.method("llm-ql"), query_length=160)
    RetrieverCard.of(method, Lineage("random"), weights=weights_digest(directory / "model")).save(directory)
    return directory


@pytest.fixture(scope="package")
def retriever(retriever_directory) -> Retriever:
    return Retriever.load(retriever_directory, precision="fp32")


@pytest.fixture
def collection_of(tmp_path) -> Callable[..., Collection]:
    """Makes a collection of the given corpus lines, with settings of prepare_corpus."""

    def make(rows: list[dict[str, str]], **settings: Any) -> Collection:
        source = write_beir(tmp_path / "source", number=10)
        first = rows[0]["_id"]
        (source / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (source / "queries.jsonl").write_text('{"_id": "q0", "text": "a question"}\n')
        for split in ("train", "test"):
            (source / "qrels" / f"{split}.tsv").unlink()
        (source / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq0\t{first}\t1\n")
        preparation.prepare(CorpusSettings(uri=str(source), **settings), tmp_path / "made")
        return Collection.open(tmp_path / "made")

    return make
