"""Writes the sparse runs of the evaluation splits: BM25's, and those of the further baselines.

BM25's run of a split is `<split>.trec`, that of another system `<split>.<key>.trec`; `runs.json` says what they are,
`lucene.json` the checksums of Lucene's index beside them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.bm25.similarities import Similarity
from llm_retriever.bm25.sparse import LUCENE_FILE, LUCENE_FOLDER, Ranking, SparseIndex, without_own
from llm_retriever.bm25.tuning import Tuning
from llm_retriever.data.collection import Collection
from llm_retriever.data.scripts import ENGLISH, PAIRED
from llm_retriever.metrics.runs import RUNS_MANIFEST, write_run
from llm_retriever.progress import Progress
from llm_retriever.stores.opening import manifest_of

BY_SCRIPT = "auto"
ANALYZERS = {
    ENGLISH: "English, stop words, Porter stemmer",
    PAIRED: "pairs of characters",
    BY_SCRIPT: "by the script of the collection",
}


def write_runs(
    index: SparseIndex,
    collection: Collection,
    splits: Sequence[str],
    depth: int,
    bm25: Similarity,
    baselines: Sequence[Similarity],
    directory: Path,
    tuning: Tuning | None = None,
) -> None:
    """Writes the runs and their manifest.

    Args:
        index: Searches.
        collection: Brings the queries.
        splits: Which splits get runs.
        depth: Passages per query.
        bm25: With its parameters.
        baselines: The systems beside it.
        directory: Holds the index in `lucene/`.
        tuning: How BM25's parameters were found.
    """
    for split in splits:
        queries, own = collection.queries(split), collection.own_passages(split)
        for system in (bm25, *baselines):
            with Progress(f"search {split} with {system.label}", len(queries), "queries") as progress:
                # One more, because the passage of the query's own id may be left out.
                rows = _watched(index.search(queries, depth + 1, system), depth, own, progress)
                write_run(directory / _file(split, system, bm25), rows, system.label)
    manifest: dict[str, Any] = {"system": bm25.label, "parameters": search_parameters(bm25, depth, index.language)}
    if baselines:
        manifest["systems"] = {
            system.label: {
                "description": system.description,
                "parameters": search_parameters(system, depth, index.language),
                "files": {split: _file(split, system, bm25) for split in splits},
            }
            for system in baselines
        }
    if tuning is not None:
        manifest["tuning"] = tuning.as_json()
    files.write_json(directory / LUCENE_FILE, manifest_of(directory / LUCENE_FOLDER))
    files.write_json(directory / RUNS_MANIFEST, {**manifest, "collection": collection.fingerprint})


def _file(split: str, system: Similarity, bm25: Similarity) -> str:
    return f"{split}.trec" if system == bm25 else f"{split}.{system.key}.trec"


def _watched(
    rows: Iterator[tuple[str, Ranking]], depth: int, own: Set[str], progress: Progress
) -> Iterator[tuple[str, Ranking]]:
    for query, ranking in rows:
        yield query, without_own(query, ranking, own)[:depth]
        progress.update()


def search_parameters(system: Similarity, depth: int, language: str) -> dict[str, Any]:
    """Describes all that decides a sparse ranking; `language` is that of the index, or `BY_SCRIPT` of several."""
    return {
        **system.parameters,
        "depth": depth,
        "contents": "title and text",
        "language": language,
        "analyzer": ANALYZERS.get(language, f"Anserini's for {language}"),
        "pyserini": importlib.metadata.version("pyserini"),
    }
