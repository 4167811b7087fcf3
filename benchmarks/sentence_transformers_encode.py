"""Encoding passages with Retriever, against the same model in sentence-transformers.

    python benchmarks/sentence_transformers_encode.py --model MODEL --collection COLLECTION [--passages 1000] [--precision auto]

MODEL is a Hugging Face causal LM's directory, COLLECTION the output of prepare_corpus. The peer is this project's own export:
same weights, precision and token ids, the vectors must agree. From texts to vectors, tokenisation included: each with the
batches that it would choose by itself, and both with the same number of rows a batch. All take turns; the best of the rounds
counts.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from llm_retriever.data.collection import Collection, Passage
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.exporting.export import export_sentence_transformers
from llm_retriever.methods import method
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.prompts import passage_text


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--method", default="repllama", help="A method that sentence-transformers can express.")
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32, help="Rows of a batch where both have the same.")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    card = RetrieverCard.of(method(given.method), Lineage(str(given.model)))
    retriever = Retriever.on_backbone(given.model, card, precision=given.precision)
    peer = exported(retriever)
    passages = list(itertools.islice(Collection.open(given.collection).passages(), given.passages))
    texts = [passage_text(p.title, p.text, card.title_joiner) for p in passages]
    lengths = [len(row) for row in retriever.tokenise_passages(passages)]
    print(
        f"{len(texts):,} passages, {np.mean(lengths):.0f} tokens each, {retriever.precision}, {retriever.model.device}"
    )
    size, show = given.batch_size, {"show_progress_bar": False}
    print("batches as each chooses them")
    compete(
        {
            "sentence-transformers": lambda: peer.encode_document(texts, **show),
            "Retriever": lambda: retriever.encode_passages(passages),
        },
        given.rounds,
    )
    print(f"batches of {size} rows")
    compete(
        {
            "sentence-transformers": lambda: peer.encode_document(texts, batch_size=size, **show),
            "Retriever": lambda: in_batches(retriever, passages, size),
        },
        given.rounds,
    )


def exported(retriever: Retriever) -> SentenceTransformer:
    """The retriever in sentence-transformers, in the same precision and on the same device."""
    with tempfile.TemporaryDirectory() as directory:
        export_sentence_transformers(retriever, f"{directory}/export")
        dtype, device = {"dtype": retriever.model.dtype}, str(retriever.model.device)
        return SentenceTransformer(f"{directory}/export", device=device, model_kwargs=dtype, local_files_only=True)


def in_batches(retriever: Retriever, passages: list[Passage], size: int) -> np.ndarray:
    """Vectors by batches of `size` rows, the longest first."""
    rows = retriever.tokenise_passages(passages)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    vectors = np.empty((len(rows), retriever.dimension), dtype=np.float32)
    for start in range(0, len(rows), size):
        batch = order[start : start + size]
        vectors[batch] = retriever.embed("passage", [rows[i] for i in batch])
    return vectors


def compete(runs: dict[str, Callable[[], np.ndarray]], rounds: int) -> None:
    """Lets all run in turns, and prints the best of each, its ratio to the first, and how far the vectors agree."""
    best, vectors = dict.fromkeys(runs, float("inf")), {}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            vectors[name] = run()
            best[name] = min(best[name], time.perf_counter() - started)
    reference = next(iter(runs))
    for name, seconds in best.items():
        cosine = (vectors[name] * vectors[reference]).sum(axis=1).min()
        rate, ratio = len(vectors[name]) / seconds, best[reference] / seconds
        print(
            f"{name:>24} {seconds:8.2f}s {rate:8,.0f} passages/s  throughput ratio {ratio:.2f}, cosine >= {cosine:.5f}"
        )


if __name__ == "__main__":
    main()
