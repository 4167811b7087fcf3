"""Everything that the step `evaluate` reads, small and real: a random retriever, its index, BM25-like runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from llm_retriever import files, methods
from llm_retriever.data import preparation
from llm_retriever.data.collection import Collection
from llm_retriever.indexing.build import build_index
from llm_retriever.metrics.runs import write_run
from llm_retriever.models.card import EMBEDDING_TOKENS, RetrieverCard, Stage, load_lineage, save_lineage, weights_digest
from llm_retriever.settings import CorpusSettings, IndexSettings
from tests.conftest import passages, write_backbone

TRICK = "<script>alert(1)</script>"


def write_source(directory: Path) -> Path:
    """40 passages; splits train, test (10 queries, one relevant passage each) and graded (4 queries, grades 0 to 3).

    The query `p39` of the split test has the id of a passage. Passage, title and query hold mark-up.
    """
    rows = passages(40)
    rows[0] |= {"title": TRICK, "text": f"{TRICK} {rows[0]['text']}"}
    asked = {f"q{i}": f"which {rows[i]['text'].split(':')[0][4:].lower()} {i}" for i in range(34)}
    asked |= {"p39": rows[39]["text"], "q30": f"{asked['q30']} {TRICK}"}
    judged = {
        "train": [(f"q{i}", f"p{i}", 1) for i in range(20)],
        "test": [(f"q{i}", f"p{i}", 1) for i in range(20, 29)] + [("p39", "p38", 1)],
        "graded": [(f"q{i}", f"p{i + g}", g) for i in range(30, 34) for g in range(4)],
    }
    (directory / "qrels").mkdir(parents=True)
    (directory / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.dumps({"_id": name, "text": text}) + "\n" for name, text in asked.items()]
    (directory / "queries.jsonl").write_text("".join(line for line in lines if '"q29"' not in line))
    for split, rows_of_split in judged.items():
        lines = [f"{query}\t{passage}\t{grade}\n" for query, passage, grade in rows_of_split]
        (directory / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return directory


def write_runs(directory: Path, corpus: Collection, splits: Iterable[str] = ("test", "graded")) -> None:
    """Runs of evaluation splits: passages by the number of words that they share with the query."""
    words = {passage.id: set(passage.text.lower().split()) for passage in corpus.passages()}
    for split in splits:
        rows = []
        for name, text in corpus.queries(split).items():
            shared = {p: float(len(found & set(text.lower().split()))) for p, found in words.items()}
            rows.append((name, sorted(shared.items(), key=lambda item: -item[1])[:30]))
        write_run(directory / f"{split}.trec", rows, "BM25")
    parameters = {"k1": 0.9, "b": 0.4, "depth": 1000}
    files.write_json(
        directory / "runs.json", {"system": "BM25", "parameters": parameters, "collection": corpus.fingerprint}
    )


def write_inputs(directory: Path) -> dict[str, Path]:
    """The six inputs by name; the adapted backbone is the backbone, passed on."""
    made = {name: directory / name for name in ("collection", "backbone", "adapted", "retriever", "index", "bm25_runs")}
    preparation.prepare(CorpusSettings(uri=str(write_source(directory / "source"))), made["collection"])
    write_backbone(made["backbone"])
    shutil.copytree(made["backbone"], made["adapted"])
    write_backbone(made["retriever"] / "model", seed=1)
    # The small tokenizer needs 100 tokens for the query's prompt alone.
    method = dataclasses.replace(methods.method("llm-ql"), query_length=160)
    lineage = load_lineage(made["backbone"]).then(Stage("contrastive", {"lora": {"rank": 8}}, seconds=3.5, examples=20))
    RetrieverCard.of(method, lineage, weights=weights_digest(made["retriever"] / "model")).save(made["retriever"])
    log = {"steps": [{"step": i, "loss": 3.0 / i} for i in range(1, 9)], "seconds": 3.5, "examples": 20}
    files.write_json(made["retriever"] / "training_log.json", log)
    build_index(made["retriever"], made["collection"], made["index"], IndexSettings(precision="fp32"))
    write_runs(made["bm25_runs"], Collection.open(made["collection"]))
    return made


@pytest.fixture(scope="session")
def unspoilt_inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The inputs of `evaluate`; not to be changed."""
    return write_inputs(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture
def inputs(unspoilt_inputs: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """The inputs of `evaluate`, for a test to spoil."""
    return {name: Path(shutil.copytree(path, tmp_path / "in" / name)) for name, path in unspoilt_inputs.items()}


@pytest.fixture(scope="session")
def asking_inputs(unspoilt_inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The inputs of `evaluate` of a retriever whose stage one was `ql`, with other weights than the backbone; not to be
    changed."""
    directory = tmp_path_factory.mktemp("asking")
    made = unspoilt_inputs | {name: directory / name for name in ("adapted", "retriever")}
    shutil.copytree(unspoilt_inputs["retriever"], made["retriever"])
    write_backbone(made["adapted"], seed=2)
    recipe = dataclasses.replace(methods.QUERY_LIKELIHOOD["default"], passage_length=160, query_length=60)
    told = {**dataclasses.asdict(recipe), EMBEDDING_TOKENS: [["eos"], ["eos"]]}
    lineage = load_lineage(made["backbone"]).then(Stage("ql", told, seconds=2.5, examples=40))
    save_lineage(made["adapted"], lineage)
    card = RetrieverCard.load(made["retriever"])
    dataclasses.replace(card, lineage=lineage.then(card.lineage.stages[-1])).save(made["retriever"])
    return made
