"""What an index loses with fewer numbers of a vector, and with smaller ones: recall against all of them in fp32, and bytes.

    python benchmarks/small_vectors.py [--index DIR] [--questions FILE] [--dimensions 384 192 96 48]

`--index` is a flat index in fp32, as build_index writes it; without it, vectors are drawn around random centres. `--questions`
has one a line; they are encoded by the retriever that lies beside the index (or `--retriever`). Without them, queries are
passages moved by noise as long as `--noise` times the vector. Recall is the share of the passages that the whole vectors
find which the small ones find too. It says nothing of relevance: compare variants for that.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from index_kinds import moved, synthetic

from llm_retriever import encoders, files
from llm_retriever.indexing.index import Index
from llm_retriever.indexing.locate_retriever import retriever_of
from llm_retriever.indexing.shard_store import LocalShards
from llm_retriever.indexing.shards import Manifest, Shard
from llm_retriever.indexing.stored import DTYPES, decoded, encoded, first_numbers, row_bytes
from llm_retriever.indexing.streaming import ShardedVectors

DEPTHS = (10, 100)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--retriever")
    parser.add_argument("--dimensions", type=int, nargs="+", help="Without it, all numbers, and halves down to 32.")
    parser.add_argument("--passages", type=int, default=20_000, help="Of vectors that are drawn.")
    parser.add_argument("--dimension", type=int, default=256, help="Of vectors that are drawn.")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = (given.index or synthetic(scratch / "vectors", given.passages, given.dimension)).absolute()
        manifest = dataclasses.replace(Manifest.load(source), kind="flat", faiss=None)
        if manifest.dtype != "fp32" or 0 < manifest.dimension < manifest.encoder_dimension:
            parser.error(f"{source} has not whole vectors in fp32")
        # All of them have length 1 where the method scales them, which a manifest of an earlier version does not say.
        normalised = all(abs(shard.largest_norm - 1) < 1e-3 for shard in manifest.shards)
        shards = LocalShards(manifest, source)
        compare(shards.directory, dataclasses.replace(manifest, normalised=normalised), scratch, given)


def compare(shards: Path, manifest: Manifest, scratch: Path, given: argparse.Namespace) -> None:
    """Prints a row for each dimension and type."""
    vectors = ShardedVectors(shards, manifest)
    queries = questions(given, manifest) if given.questions else moved(vectors, given.queries, given.noise)
    manifest = dataclasses.replace(manifest, shards_uri=str(shards))
    exact = found_by(Index(shards, manifest), queries)
    print(f"{manifest.count:,} passages × {manifest.dimension}, {len(queries):,} queries")
    print(f"{'numbers':>7} {'type':>5} {'recall@10':>9} {'@100':>6} {'bytes a passage':>15}")
    for dimension in given.dimensions or halves(manifest.dimension):
        for dtype in DTYPES:
            directory = scratch / f"{dimension}-{dtype}"
            index = written(directory, vectors, manifest, dimension, dtype)
            recalls = [shared(a, b) for a, b in zip(exact, found_by(index, queries), strict=True)]
            size = row_bytes(dtype, dimension)
            print(f"{dimension:>7} {dtype:>5} {recalls[0]:>9.3f} {recalls[1]:>6.3f} {size:>15,}", flush=True)


def questions(given: argparse.Namespace, manifest: Manifest) -> np.ndarray:
    """Vectors of the questions of a file."""
    encoder = encoders.load(given.retriever or retriever_of(str(given.index), manifest))
    if encoder.identity() != manifest.card:
        raise SystemExit(f"the index was not made by {encoder.name}")
    lines = given.questions.read_text(encoding="utf-8").splitlines()
    return encoder.encode_queries([line for line in lines if line.strip()], progress=True)


def halves(dimension: int) -> list[int]:
    """All numbers, half of them and so on, 32 at least.

    >>> halves(256)
    [256, 128, 64, 32]
    """
    return [dimension] + (halves(dimension // 2) if dimension >= 64 else [])


def written(directory: Path, vectors: ShardedVectors, manifest: Manifest, dimension: int, dtype: str) -> Index:
    """An index of the first numbers of all vectors, in one shard with the ids of all."""
    directory.mkdir()
    largest, rows = 0.0, []
    for _, block in vectors.blocks():
        rows.append(encoded(first_numbers(block, dimension, normalised=manifest.normalised), dtype).copy())
        largest = max(largest, float(np.linalg.norm(decoded(rows[-1]), axis=1).max()))
    np.save(directory / "vectors.npy", np.concatenate(rows))
    ids = (Path(manifest.shards_uri) / shard.ids for shard in manifest.shards)
    (directory / "ids.txt").write_bytes(b"".join(path.read_bytes() for path in ids))
    digests = (files.sha256_of_file(directory / name) for name in ("vectors.npy", "ids.txt"))
    shard = Shard("vectors.npy", "ids.txt", manifest.count, *digests, largest, 1, 1, 1.0)
    kept = {"dimension": dimension, "encoder_dimension": manifest.dimension, "dtype": dtype}
    return Index(directory, dataclasses.replace(manifest, shards=(shard,), shards_uri="", **kept))


def found_by(index: Index, queries: np.ndarray) -> list[list[list[str]]]:
    """Ids of the passages that are found at each depth."""
    return [list(index.search(queries, depth)[1]) for depth in DEPTHS]


def shared(wanted: list[list[str]], found: list[list[str]]) -> float:
    """Mean share of what is wanted that was found."""
    return float(np.mean([len({*a} & {*b}) / len(a) for a, b in zip(wanted, found, strict=True)]))


if __name__ == "__main__":
    main()
