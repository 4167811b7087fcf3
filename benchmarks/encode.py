"""Encoding passages in length-sorted batches of a token budget, against fixed batches as most code makes them.

    python benchmarks/encode.py MODEL COLLECTION [--passages 1000] [--precision auto]

MODEL is a Hugging Face causal LM's directory, COLLECTION the output of prepare_corpus. The peers run the same model on the
same token ids with left padding and a mask: every batch padded to the longest length that is allowed, and every batch padded
to its own longest row. All take turns; the best of the rounds counts. The vectors must agree.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from llm_retriever.data.collection import Collection
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.methods import method
from llm_retriever.models.batches import padded
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.pooling import pool

Rows = list[list[int]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32, help="Of the fixed batches.")
    parser.add_argument("--batch-tokens", type=int, default=16_384, help="Of the budgeted batches.")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    card = RetrieverCard.of(method("llm-ql"), Lineage(str(given.model)))
    retriever = Retriever.on_backbone(given.model, card, precision=given.precision)
    passages = list(itertools.islice(Collection.open(given.collection).passages(), given.passages))
    rows = retriever.tokenise_passages(passages)
    tokens = sum(map(len, rows))
    print(f"{len(rows):,} passages, {tokens / len(rows):.0f} tokens each, {retriever.precision}")
    compete(
        {
            "padded to the limit": lambda: fixed(retriever, rows, given.batch_size, card.passage_length),
            "padded to the longest": lambda: fixed(retriever, rows, given.batch_size, 1),
            "token budget": lambda: retriever.encode_rows("passage", rows, given.batch_tokens),
        },
        len(rows),
        tokens,
        given.rounds,
    )


def compete(runs: dict[str, Callable[[], np.ndarray]], passages: int, tokens: int, rounds: int) -> None:
    """Lets all run in turns, and prints the best of each and its ratio to the first."""
    best = dict.fromkeys(runs, float("inf"))
    vectors = {}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            vectors[name] = run()
            best[name] = min(best[name], time.perf_counter() - started)
    reference = next(iter(runs))
    for name, seconds in best.items():
        ratio, apart = seconds / best[reference], np.abs(vectors[name] - vectors[reference]).max()
        rates = f"{passages / seconds:8,.0f} passages/s {tokens / seconds:10,.0f} tokens/s"
        print(f"{name:>22} {seconds:8.2f}s {rates}  ratio {ratio:.2f}, vectors differ by {apart:.0e}")


@torch.inference_mode()
def fixed(retriever: Retriever, rows: Rows, size: int, multiple_of: int) -> np.ndarray:
    """Batches of `size` rows in the order of the corpus, left-padded and masked."""
    parts = []
    for start in range(0, len(rows), size):
        batch = padded(rows[start : start + size], 0, "left", multiple_of)
        batch = {name: tensor.to(retriever.model.device) for name, tensor in batch.items()}
        hidden = retriever.model(**batch, use_cache=False).last_hidden_state
        parts.append(pool(hidden, batch["attention_mask"], normalise=True).cpu().numpy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
