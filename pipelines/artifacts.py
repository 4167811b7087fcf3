"""Sizes of the artifacts of a run's steps, file by file, and the S3 requests that moving them takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.model_shapes import Shape

LAUNCHER_PART, STORE_PART = 5 * 2**20, 16 * 2**20
"""Bytes of a part: of Kubeflow's launcher, which moves artifacts, and of the project's own store."""
SMALL = 2_000.0
"""A configuration, a manifest, a card."""
VOCABULARY_ENTRY = 70.0
PASSAGE, QUERY, JUDGMENT = 400.0, 90.0, 17.0
"""Bytes of a row; a passage where its length is not known, else `TOKEN` a token and `PASSAGE_FRAME`."""
TOKEN, PASSAGE_FRAME = 4.5, 40.0
REMEMBERED = 60.0
NEGATIVE, EXAMPLE = 66.0, 150.0
RUN_LINE = 42.0
POSTINGS = 80.0
"""Bytes of a passage of 60 words in Lucene's index, without text and positions."""
SYSTEMS = 4
"""Runs in an evaluation: the retriever, hybrid search, BM25, the un-tuned backbone."""
ID, DIGEST = 8.0, 16.0
NUMBER, SCALE = {"fp32": 4, "fp16": 2, "int8": 1}, 4
"""Bytes of a stored number, and of the scale of a vector in int8."""
LINK = 4
"""Bytes of a neighbour in a graph; its lowest layer has twice `hnsw_m`."""
REPORT = 30_000.0
VALUES = 200.0
"""Bytes of a query's values, of all systems and measures."""

Files = tuple[float, ...]


def total(read: Iterable[Files]) -> float:
    """Sum of the bytes of several artifacts."""
    return sum(sum(files) for files in read)


def uploads(written: Iterable[Files], part: int = LAUNCHER_PART) -> int:
    """Number of requests that sending takes: one a file, or one a part and two around them."""
    sizes = [size for files in written for size in files]
    return sum(1 if size <= part else math.ceil(size / part) + 2 for size in sizes)


def downloads(read: Iterable[Files]) -> int:
    """Number of requests that the launcher's fetching takes: one a file, and a listing an artifact."""
    return sum(1 + len(files) for files in read)


@dataclass(frozen=True)
class Sizes:
    """Bytes of the files of every artifact.

    Attributes:
        given: The pipeline's parameters.
        shape: Shape of the backbone.
        adapter: Parameters of the retriever's LoRA adapter; 0 = all weights are trained.
        passages, queries, evaluated: Of the corpus, for training, and in the evaluation splits.
        passage_bytes: Bytes of a row of the corpus.
    """

    given: Mapping[str, Any]
    shape: Shape
    adapter: float
    passages: int
    queries: int
    evaluated: int
    passage_bytes: float = PASSAGE

    def of(self, artifact: str) -> Files:
        """Bytes of an artifact's files."""
        files: Files = getattr(self, artifact)
        return files

    @property
    def collection(self) -> Files:
        """Passages, queries, judgments; the description, and statistics beside it."""
        asked = self.queries + self.evaluated
        return (
            self.passages * self.passage_bytes,
            asked * QUERY,
            self.queries * JUDGMENT,
            self.evaluated * JUDGMENT,
            SMALL,
            SMALL,
        )

    @property
    def prepared(self) -> float:
        """Bytes that preparing takes beside the collection: the index of rows, and a copy of a remote source."""
        copy = sum(self.collection) if "://" in str(self.given["corpus_uri"]) else 0.0
        return self.passages * REMEMBERED + copy

    @property
    def backbone(self) -> Files:
        """Weights, tokenizer, and configurations."""
        weights = self.shape.parameters * self.shape.stored
        return (weights, self.shape.vocabulary * VOCABULARY_ENTRY, SMALL, SMALL, SMALL, SMALL)

    @property
    def adapted(self) -> Files:
        """Another backbone; its log, curves and measures."""
        return (*self.backbone, SMALL, SMALL, SMALL)

    @property
    def training_set(self) -> Files:
        """Examples with their negatives; the description, statistics and a picture beside it."""
        return (self.queries * (EXAMPLE + NEGATIVE * self.given["mine_negatives"]), SMALL, SMALL, REPORT)

    @property
    def bm25_runs(self) -> Files:
        """A run a split, and Lucene's index."""
        return (self._run(self.given["mine_evaluation_depth"]), self.passages * POSTINGS, SMALL)

    @property
    def data(self) -> Files:
        """Artifacts that the variants of a comparison read, without the backbone."""
        return (*self.collection, *self.training_set, *self.bm25_runs)

    def _run(self, depth: int) -> float:
        return self.evaluated * min(depth, self.passages) * RUN_LINE

    @property
    def retriever(self) -> Files:
        """The merged model, the adapter in fp32, the card; log, curves and measures."""
        adapter = (4 * self.adapter, SMALL) if self.adapter else ()
        # The model's lineage stands in the card.
        return (*self.backbone, *adapter, SMALL, SMALL, SMALL)

    @property
    def shards(self) -> Files:
        """Vectors and ids, shard by shard."""
        size = self.given["index_shard_passages"]
        counts = [min(size, self.passages - start) for start in range(0, self.passages, size)]
        row = self.dimension * NUMBER[self.given["index_dtype"]] + (SCALE if self.given["index_dtype"] == "int8" else 0)
        return tuple(x for n in counts for x in (128.0 + n * row, n * ID))

    @property
    def dimension(self) -> int:
        """Numbers of a vector that are kept."""
        return self.given["index_dimension"] or self.shape.hidden

    @property
    def index(self) -> Files:
        """Shards, unless they lie apart; what the kind adds; digests of the passages; the manifest."""
        own = () if self.given["index_shards_uri"] else self.shards
        kind = self._kind(self.given["index_kind"])
        return (*own, *((kind,) if kind else ()), self.passages * DIGEST, SMALL)

    def _kind(self, kind: str) -> float:
        numbers = self.dimension
        codes = self.given["index_pq_bytes"] if self.given["index_pq_bytes"] > 0 else numbers / 8
        row = {
            "flat": 0.0,
            "hnsw": 2 * numbers + LINK * 2 * self.given["index_hnsw_m"],
            "ivf-pq": codes + ID,
            "sq8": numbers,
            "fp16": 2 * numbers,
        }[kind]
        return self.passages * row

    @property
    def evaluation(self) -> Files:
        """Runs of the systems, Lucene's index, measures and the report; the values of every query are in it."""
        run = self._run(self.given["eval_depth"])
        return (
            *(run for _ in range(SYSTEMS)),
            self.passages * POSTINGS,
            self.evaluated * VALUES,
            REPORT,
            SMALL,
            SMALL,
            SMALL,
        )

    @property
    def decision(self) -> Files:
        """The decision's page."""
        return (SMALL,)
