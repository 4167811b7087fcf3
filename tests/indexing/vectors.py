"""Indexes of given vectors, and what a search in them has to find by definition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm_retriever import files
from llm_retriever.indexing.faiss_kinds import add_faiss
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.shards import Manifest, Shard
from llm_retriever.indexing.stored import decoded, encoded
from llm_retriever.methods import method
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.settings import IndexSettings

CARD = RetrieverCard.of(method("llm-ql"), Lineage("random"), weights="0" * 64)


def write_vectors(
    directory: Path,
    vectors: np.ndarray,
    ids: Sequence[str],
    shards: int = 1,
    dtype: str = "fp32",
    settings: IndexSettings | None = None,
) -> Index:
    """An index of given vectors, cut into equal shards; flat unless `settings` say otherwise."""
    directory.mkdir(parents=True)
    entries = []
    for i, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        file, names = directory / f"vectors-{i:05d}.npy", directory / f"ids-{i:05d}.txt"
        stored = encoded(vectors[rows], dtype)
        np.save(file, stored)
        names.write_text("".join(f"{ids[row]}\n" for row in rows))
        norm = float(np.linalg.norm(decoded(stored), axis=1).max())
        digests = files.sha256_of_file(file), files.sha256_of_file(names)
        entries.append(Shard(file.name, names.name, len(rows), *digests, norm, 1, 1, 1.0))
    manifest = Manifest(
        "flat", "inner_product", len(vectors), vectors.shape[1], dtype, tuple(entries), CARD.digest(), "f", {}, {}, {}
    )
    if settings is not None:
        manifest = add_faiss(directory, manifest, settings)
    files.write_json(directory / "manifest.json", manifest.as_json())
    return Index.open(directory, CARD)


def unit(rows: int, dimension: int = 48, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_definition(queries: np.ndarray, vectors: np.ndarray, ids: Sequence[str], depth: int) -> list[list[str]]:
    """Sorts all passages by the rounded inner product, then by id, both descending."""
    scores = [(q.astype(np.float64) * vectors.astype(np.float64)).sum(axis=1).astype(np.float32) for q in queries]
    return [[i for _, i in sorted(zip(row.tolist(), ids, strict=True), reverse=True)[:depth]] for row in scores]


def names(count: int) -> list[str]:
    return [f"p{i}" for i in np.random.default_rng(5).permutation(count)]


def clustered(rows: int, dimension: int = 48, clusters: int = 50, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """Vectors of length 1 around random centres, which `seed` leaves as they are."""
    centres = np.random.default_rng(99).standard_normal((clusters, dimension)).astype(np.float32)
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((rows, dimension)).astype(np.float32)
    vectors = centres[draw.integers(0, clusters, rows)] + spread * noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
