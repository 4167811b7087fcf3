"""A collection whose passages make BM25 show what it does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_retriever.data.collection import Collection
from llm_retriever.data.preparation import prepare
from llm_retriever.files.seal import SEAL
from llm_retriever.mining.negatives import mine
from llm_retriever.settings import CorpusSettings, MiningSettings
from tests.conftest import passages, queries
from tests.indexing.conftest import retriever_directory  # noqa: F401  (a fixture)

SPECIAL = [
    # Of one length, with the same words: their scores are equal.
    *[{"_id": f"tie{i}", "title": "", "text": f"zebra crossing {word}"} for i, word in ((3, "x"), (1, "y"), (2, "z"))],
    {"_id": "titled", "title": "Okapi", "text": "A mammal of the rainforest."},
    {"_id": "runs", "title": "", "text": "Antelopes are running."},
    {"_id": "ключ/🚀", "title": "", "text": "Ракета 🚀 летит."},
]
LONG_QUERY = " ".join(f"word{i}" for i in range(3000))


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """66 passages; splits train (with twins of positives and an unanswerable query), dev and test."""
    root = tmp_path_factory.mktemp("mining")
    write_source(root / "source")
    prepare(CorpusSettings(uri=str(root / "source"), deduplicate=False), root / "collection")
    return Collection.open(root / "collection")


def write_source(directory: Path) -> None:
    """The shared passages, the special ones, and for three train queries the traps that mining has to see."""
    rows = passages()
    asked = [*queries(rows), ("empty", "the of", "titled"), ("long", LONG_QUERY + " okapi", "titled")]
    twin = {"_id": "twin", "title": "Another title", "text": rows[0]["text"].upper()}
    echo = {"_id": "echo", "title": "", "text": queries(rows)[1][1].title()}
    (directory / "qrels").mkdir(parents=True)
    corpus = [*rows, *SPECIAL, twin, echo]
    (directory / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (directory / "queries.jsonl").write_text("".join(json.dumps({"_id": q, "text": t}) + "\n" for q, t, _ in asked))
    for split, part in (("train", [*asked[:40], *asked[60:]]), ("dev", asked[40:50]), ("test", asked[50:60])):
        lines = "".join(f"{query}\t{passage}\t1\n" for query, _, passage in part)
        (directory / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)


def mined_into(directory: Path, collection: Path, settings: MiningSettings) -> Path:
    """Mines into `training_set`, `runs`, `statistics.md` and `picture.html` of a directory; returns it."""
    outputs = (directory / name for name in ("training_set", "runs", "statistics.md", "picture.html"))
    mine(settings, collection, *outputs)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    """Every file of a directory but Lucene's, which hold random names, and the checksums of these."""
    files = (path for path in directory.rglob("*") if path.is_file())
    paths = (path for path in files if not {"lucene", SEAL} & {path.parent.name, path.stem})
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
