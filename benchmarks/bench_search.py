"""Search, mining and metrics against the libraries alone: FAISS, pyserini, trec_eval's code.

FAISS holds a copy of the vectors in memory and gives row numbers; the index settles near-ties, merges shards, checks and gives
passage ids. pyserini's glue script starts Java, indexes, searches and writes the runs of all splits; mining also checks the
collection, removes positives and equal texts, draws and writes the training set.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytrec_eval
from works import OURS, Here, Inputs, Work

from llm_retriever import files
from llm_retriever.bm25.java import find_java
from llm_retriever.data.collection import Collection
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest, Shard
from llm_retriever.indexing.stored import decoded, encoded
from llm_retriever.methods import method
from llm_retriever.metrics.conventions import TRAINING_SPLIT
from llm_retriever.metrics.measures import parse_measures, score_queries
from llm_retriever.mining.negatives import mine
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.settings import MiningSettings

CARD = RetrieverCard.of(method("llm-ql"), Lineage("random"), weights="0" * 64)
QUERIES, DIMENSION = 1000, 256
PASSAGES, STREAMED, MEMORY = 42_000, 400_000, 128 * 2**20
"""Of the flat search in memory; of the streaming one, and the bytes that it may hold."""
MINING_DEPTH = 200
MEASURES = parse_measures("mrr@10,ndcg@10,recall@100,recall@1000")
TREC_NAMES = {"recip_rank", "ndcg_cut.10", "recall.100,1000"}
JUDGED = 3490
"""Queries of the measures, half of MS MARCO's dev, each with 1,000 passages."""
Step = Callable[[], dict[str, Any] | None]


def unit(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Random vectors of length 1, float32 [rows, dimension]."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def written(directory: Path, vectors: np.ndarray, dtype: str, shards: int) -> Index:
    """An index of the vectors; a passage's id is its row number."""
    directory.mkdir()
    entries = []
    for i, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        file, names = directory / f"vectors-{i:05d}.npy", directory / f"ids-{i:05d}.txt"
        np.save(file, encoded(vectors[rows], dtype))
        names.write_text("".join(f"{row}\n" for row in rows.tolist()))
        digests = files.sha256_of_file(file), files.sha256_of_file(names)
        norm = float(np.linalg.norm(vectors[rows], axis=1).max())
        entries.append(Shard(file.name, names.name, len(rows), *digests, norm, 1, 1, 1.0))
    content = (len(vectors), vectors.shape[1], dtype, tuple(entries), CARD.digest(), "", {}, {}, {})
    files.write_json(directory / "manifest.json", Manifest("flat", "inner_product", *content).as_json())
    return Index.open(directory, CARD)


def flat_ours(depth: int, inputs: Inputs) -> Step:
    """Searches one shard, every id decoded."""
    queries = unit(QUERIES, DIMENSION, 1)
    index = written(inputs.folder() / "index", decoded(encoded(unit(PASSAGES, DIMENSION, 0), "fp32")), "fp32", 1)

    def search() -> dict[str, Any]:
        _, ids = index.search(queries, depth)
        return {"first": [row[0] for row in list(ids)][:100]}

    return search


def flat_peer(number: int, depth: int, inputs: Inputs) -> Step:
    """FAISS's flat index."""
    queries, index = unit(QUERIES, DIMENSION, 1), faiss.IndexFlatIP(DIMENSION)
    index.add(unit(number, DIMENSION, 0))

    def search() -> dict[str, Any]:
        _, rows = index.search(queries, depth)
        return {"first": [str(row[0]) for row in rows][:100]}

    return search


def streamed(inputs: Inputs) -> Step:
    """Searches four shards in memory that does not hold them."""
    directory = inputs.folder() / "index"
    written(directory, unit(STREAMED, DIMENSION, 0), "fp32", 4)
    index, queries = Index.open(directory, CARD, memory_bytes=MEMORY), unit(QUERIES, DIMENSION, 1)

    def search() -> dict[str, Any]:
        _, ids = index.search(queries, 100)
        return {"first": [row[0] for row in list(ids)][:100]}

    return search


def mine_ours(inputs: Inputs) -> Step:
    """Everything that mining does."""

    def work() -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=inputs.scratch) as scratch:
            outputs = [Path(scratch) / name for name in ("training_set", "runs", "statistics.md", "picture.html")]
            mine(MiningSettings(depth=MINING_DEPTH), inputs.collection, *outputs)
        return {"first": []}

    return work


def mine_peer(inputs: Inputs) -> Step:
    """A script that indexes and searches with pyserini as its documentation shows it; what it imports does not count."""
    command = [sys.executable, __file__, str(inputs.collection)]

    def work() -> dict[str, Any]:
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        return {"first": [], "seconds": float(told)}

    return work


def search_with_pyserini(collection: str) -> None:
    """The script."""
    os.environ.update(find_java().variables())
    os.environ.setdefault("OPENAI_API_KEY", "unused")  # pyserini imports an encoder that wants one
    started = time.perf_counter()
    import pyserini.pyclass  # noqa: F401  (starts Java)

    java = time.perf_counter() - started
    from pyserini.index.lucene import LuceneIndexer
    from pyserini.search.lucene import LuceneSearcher

    started, opened = time.perf_counter() - java, Collection.open(collection)
    with tempfile.TemporaryDirectory() as directory:
        indexer = LuceneIndexer(directory, threads=2)
        rows = [{"id": p.id, "contents": f"{p.title} {p.text}".strip()} for p in opened.passages()]
        indexer.add_batch_dict(rows)
        indexer.close()
        searcher = LuceneSearcher(directory)
        searcher.set_bm25(0.9, 0.4)
        for split in opened.splits:
            depth = MINING_DEPTH if split == TRAINING_SPLIT else MiningSettings().evaluation_depth
            with (Path(directory) / f"{split}.trec").open("w") as run:
                for query, hits in _found(searcher, opened.queries(split), depth):
                    run.writelines(f"{query} Q0 {h.docid} {r} {h.score} BM25\n" for r, h in enumerate(hits, 1))
    print(time.perf_counter() - started)


def _found(searcher: Any, queries: dict[str, str], depth: int) -> Iterator[tuple[str, list[Any]]]:
    names, texts = list(queries), list(queries.values())
    for start in range(0, len(names), 1000):  # faster for it than all at once: less lies in Java's heap
        part = slice(start, start + 1000)
        yield from searcher.batch_search(texts[part], names[part], k=depth, threads=2).items()


def judged() -> tuple[dict[str, dict[str, int]], dict[str, dict[str, float]]]:
    """Judgments and a run with float32 scores; most relevant passages stand near the top."""
    random = np.random.default_rng(0)
    scores = -np.sort(-random.random((JUDGED, 1000), dtype=np.float32), axis=1)
    qrels, run = {}, {}
    for query in range(JUDGED):
        passages = [str(p) for p in random.choice(8_800_000, 1000, replace=False).tolist()]
        relevant = (1000 * random.random(1 + int(random.random() < 0.07)) ** 8).astype(int)
        qrels[str(query)] = {passages[i]: 1 for i in relevant.tolist()}
        run[str(query)] = dict(zip(passages, scores[query].tolist(), strict=True))
    return qrels, run


def metrics_ours(inputs: Inputs) -> Step:
    """Also cuts MRR and counts queries without a result."""
    qrels, run = judged()
    return lambda: {"first": [round(v, 5) for v in list(score_queries(MEASURES, qrels, run)["ndcg@10"].values())[:100]]}


def metrics_peer(inputs: Inputs) -> Step:
    """trec_eval's code through pytrec_eval."""
    qrels, run = judged()

    def evaluate() -> dict[str, Any]:
        found = pytrec_eval.RelevanceEvaluator(qrels, TREC_NAMES).evaluate(run)
        return {"first": [round(row["ndcg_cut_10"], 5) for row in list(found.values())[:100]]}

    return evaluate


def agreement(row: dict[str, Any], inputs: Inputs) -> str:
    """Whether both found the same."""
    mine, theirs = row["ways"][OURS].pop("first"), row["ways"][row["against"]].pop("first")
    return f"{np.mean([one == other for one, other in zip(mine, theirs, strict=True)]):.0%} the same" if mine else ""


def flat(depth: int) -> Work:
    """Flat search at a depth."""
    ways = {
        OURS: Here(functools.partial(flat_ours, depth)),
        "FAISS alone": Here(functools.partial(flat_peer, PASSAGES, depth)),
    }
    return Work(
        f"flat-{depth}",
        f"flat search, {PASSAGES:,} × {DIMENSION}, depth {depth}, with ids",
        ways,
        0.95,
        None,
        agreement,
    )


WORKS = (
    *(flat(depth) for depth in (10, 100, 1000)),
    Work(
        "streaming",
        f"search in {MEMORY // 2**20} MiB, {STREAMED:,} × {DIMENSION}, depth 100",
        {OURS: Here(streamed), "FAISS alone, all in memory": Here(functools.partial(flat_peer, STREAMED, 100))},
        0.95,
        None,
        agreement,
    ),
    Work(
        "mining",
        f"BM25 mining, depth {MINING_DEPTH}, with indexing",
        {OURS: Here(mine_ours), "a script with pyserini": Here(mine_peer)},
        0.95,
        None,
        agreement,
    ),
    Work(
        "metrics",
        f"four measures, {JUDGED:,} queries × 1,000",
        {OURS: Here(metrics_ours), "pytrec_eval alone": Here(metrics_peer)},
        0.95,
        None,
        agreement,
    ),
)

if __name__ == "__main__":
    search_with_pyserini(sys.argv[1])
