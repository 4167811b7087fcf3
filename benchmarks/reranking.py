"""Query-likelihood re-ranking against the usual loop over padded batches, on the same pairs, in one process.

    python benchmarks/reranking.py --model BACKBONE --collection COLLECTION [--queries 50] [--depth 20] [--rounds 3]

The peer is what a script does with plain transformers: pairs in the order of the queries, batches padded to their longest row,
logits at every position. Ours sorts by length, has logits only where a token of a query is predicted, and puts the queries of
a passage into one row. Candidates are drawn from as many passages as there are queries, so that a passage has about `depth` of
them, as a small corpus has; `--distinct` gives every pair a passage of its own. Scores must agree. Wall-clock time, best round.
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import islice
from pathlib import Path

import torch

from llm_retriever.data.collection import Collection
from llm_retriever.models.batches import padded
from llm_retriever.models.card import load_lineage
from llm_retriever.reranking.likelihood import QueryLikelihood, QueryPrompt, load_language_model

BATCH = 16

Pairs = list[tuple[str, str]]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--collection", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--distinct", action="store_true")
    given = parser.parse_args()
    collection = Collection.open(given.collection)
    pairs = candidates(collection, given.queries, given.depth, given.distinct)
    model, tokenizer = load_language_model(given.model, precision="auto")
    scorer = QueryLikelihood(model, tokenizer, QueryPrompt.of(load_lineage(given.model)), collection.lookup())
    best = {"loop": float("inf"), "ours": float("inf")}
    for _ in range(given.rounds):
        started = time.perf_counter()
        expected = loop(scorer, pairs)
        between = time.perf_counter()
        found = scorer.scores(pairs, attention_block=False)
        ended = time.perf_counter()
        best = {"loop": min(best["loop"], between - started), "ours": min(best["ours"], ended - between)}
    furthest = max(abs(one - other) / abs(one) for one, other in zip(expected, found, strict=True))
    print(f"{len(pairs):,} pairs, {len({p for _, p in pairs}):,} passages; largest relative difference {furthest:.1e}")
    for name, seconds in best.items():
        print(f"{name}: {seconds:.2f} s, {len(pairs) / seconds:,.0f} pairs per second, {best['loop'] / seconds:.2f} ×")


def candidates(collection: Collection, queries: int, depth: int, distinct: bool) -> Pairs:
    """Pairs of query and passage, query after query."""
    draw = random.Random(0)
    split = next(iter(collection.splits))
    texts = list(islice(collection.queries(split).values(), queries))
    ids = [passage.id for passage in islice(collection.passages(), queries * depth if distinct else queries)]
    if distinct:
        return [(text, ids[(i * depth + j) % len(ids)]) for i, text in enumerate(texts) for j in range(depth)]
    return [(text, passage) for text in texts for passage in draw.sample(ids, min(depth, len(ids)))]


@torch.inference_mode()
def loop(scorer: QueryLikelihood, pairs: Pairs) -> list[float]:
    """The peer."""
    queries, documents = scorer.tokenised(pairs)
    scores = []
    for start in range(0, len(pairs), BATCH):
        rows = [([*documents[p], *scorer.rows.embedding], queries[q]) for q, p in pairs[start : start + BATCH]]
        batch = padded([[*document, *query] for document, query in rows], scorer.rows.end, "right")
        on_device = {name: values.to(scorer.model.device) for name, values in batch.items()}
        logarithms = scorer.model(**on_device, use_cache=False).logits.float().log_softmax(dim=-1)
        for row, (document, query) in zip(logarithms, rows, strict=True):
            read = row[len(document) - 1 : len(document) - 1 + len(query)]
            scores.append(float(read.gather(1, torch.tensor(query, device=row.device)[:, None]).sum()))
    return scores


if __name__ == "__main__":
    main()
