"""Attention of a query's tokens while a language model generates it from a passage: on the passage, or on [E]?

Rows of the attention matrices are the positions that predict the query's tokens, from the last [E] on; columns are the
beginning of sequence, or whatever token is the first (an attention sink), the prompt, the passage in relative bins, [E], and
the query itself. Every value is a mean over heads and rows. Both models read with an ordinary causal mask: nothing forces the
attention through [E].

Source: Zhang et al. (LLM-QL), section 7.5 and Figure 3; how layers and heads are aggregated is not told there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llm_retriever.data.collection import PassageLookup
from llm_retriever.models import masks
from llm_retriever.models.batches import token_batches
from llm_retriever.models.card import RetrieverCard
from llm_retriever.progress import Progress
from llm_retriever.reranking.likelihood import (
    QueryLikelihood,
    QueryPrompt,
    lacking,
    lineage_within,
    load_language_model,
)
from llm_retriever.settings import EvaluationSettings

if TYPE_CHECKING:
    from llm_retriever.evaluation.evaluation_run import Bench
    from llm_retriever.evaluation.optional_analyses import Paths
    from llm_retriever.evaluation.splits import SplitResults

BINS = 20
BEGINNING, PROMPT, FIRST_BIN, EMBEDDING, QUERY = 0, 1, 2, 2 + BINS, 3 + BINS
COLUMNS = (
    "beginning of sequence",
    "prompt",
    *(f"passage {100 * i // BINS}–{100 * (i + 1) // BINS} %" for i in range(BINS)),
    "[E]",
    "query",
)
VALUES_AT_ONCE = 1 << 27
"""Attention weights of all layers that are held at a time: 512 MiB in fp32; a single longer row is held alone."""
DIGITS = 7


def analysed(
    directories: Mapping[str, Path],
    template: QueryPrompt,
    lookup: PassageLookup,
    pairs: Sequence[tuple[str, str]],
    *,
    precision: str,
    device: str | None = None,
) -> dict[str, Any]:
    """Analyses several models on the same pairs, for `evaluation.json`.

    Args:
        directories: Model directories by name; they are loaded one after the other.
        template: Prompt of the rows, for all of them alike.
        lookup: The collection's passages.
        pairs: Text of the query and id of a relevant passage.
        precision: As for the retriever.
        device: As torch names it; None = the first GPU, or the processor.

    Raises:
        InputError: A model cannot be loaded, or lacks an embedding token.
    """
    models = {}
    for name, directory in directories.items():
        model, tokenizer = load_language_model(directory, precision=precision, device=device, attention="eager")
        with Progress(f"attention of the {name}", len(pairs), "pairs") as progress:
            means = attention_means(QueryLikelihood(model, tokenizer, template, lookup), pairs, progress)
        models[name] = {
            "layers": [[round(value, DIGITS) for value in layer] for layer in means.tolist()],
            "embedding_share": embedding_share(means),
        }
        del model
    return {"pairs": len(pairs), "columns": list(COLUMNS), "models": models}


def embedding_share(means: Tensor) -> float:
    """Share of [E] in the attention of the query's tokens to the text before them, the first position left out.

    Args:
        means: Float [layers, columns]; every row sums to 1.
    """
    before = means[:, PROMPT : EMBEDDING + 1].sum(dim=1)
    return float((means[:, EMBEDDING] / before).mean())


@torch.inference_mode()
def attention_means(
    scorer: QueryLikelihood, pairs: Sequence[tuple[str, str]], progress: Progress | None = None
) -> Tensor:
    """Means of the attention by layer and column, over heads and over the rows of all pairs.

    Args:
        scorer: A causal LM with eager attention, which gives its weights, and the prompt of the rows.
        pairs: Text of the query and id of the passage; a query without any token is left out.
        progress: Counts the pairs.

    Returns:
        float64 [layers, columns], on the processor; every row sums to 1.

    Raises:
        ValueError: No pair has a query.
    """
    config = scorer.model.config.get_text_config()
    total, rows = torch.zeros(config.num_hidden_layers, len(COLUMNS), dtype=torch.float64), 0
    documents, queries = _rows(scorer, pairs)
    lengths = [len(d) + len(scorer.rows.embedding) + len(q) for d, q in zip(documents, queries, strict=True)]
    for chosen in _batches(lengths, config.num_hidden_layers * config.num_attention_heads):
        kept = [i for i in chosen if len(queries[i]) > 1]
        if kept:
            sums, count = _batch(scorer, [documents[i] for i in kept], [queries[i] for i in kept])
            total += sums
            rows += count
        if progress is not None:
            progress.update(len(chosen))
    if not rows:
        raise ValueError("no pair has a query whose attention could be looked at")
    return total / rows


def _rows(scorer: QueryLikelihood, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[list[int]]]:
    queries, documents = scorer.tokenised(pairs)
    return [documents[passage] for _, passage in pairs], [queries[query] for query, _ in pairs]


def _batches(lengths: Sequence[int], matrices: int) -> list[list[int]]:
    """Groups rows of similar length whose attention weights in all layers and heads are at most `VALUES_AT_ONCE`."""
    return token_batches([matrices * length**2 for length in lengths], VALUES_AT_ONCE)


def _batch(scorer: QueryLikelihood, documents: list[list[int]], queries: list[list[int]]) -> tuple[Tensor, int]:
    """Sums attention over the rows of a batch, [layers, columns], and counts the rows."""
    batch = scorer.rows.assembled(documents, queries)
    device = scorer.model.device
    mask = masks.check(masks.causal(batch["attention_mask"].to(device), scorer.model.dtype))
    output = scorer.model.base_model(
        input_ids=batch["input_ids"].to(device), attention_mask=mask, output_attentions=True, use_cache=False
    )
    places = [_places(scorer, d, q) for d, q in zip(documents, queries, strict=True)]
    sums = torch.zeros(len(output.attentions), len(COLUMNS), dtype=torch.float64)
    for number, weights in enumerate(output.attentions):
        heads = weights.float().mean(dim=1)
        for row, (start, columns) in enumerate(places):
            looked = heads[row, start : start + len(queries[row]) - 1, : len(columns)].sum(dim=0)
            sums[number] += looked.double().cpu() @ columns
    return sums, sum(len(query) - 1 for query in queries)


def _places(scorer: QueryLikelihood, document: Sequence[int], query: Sequence[int]) -> tuple[int, Tensor]:
    """Locates the first row to look at, and each position's share in each column, float64 [length, columns]."""
    first, behind = scorer.rows.documents.body_span(document)
    embedding, width = len(document), len(scorer.rows.embedding)
    columns = torch.zeros(embedding + width + len(query), len(COLUMNS), dtype=torch.float64)
    columns[:embedding, PROMPT] = 1
    columns[first:behind, PROMPT] = 0
    columns[first:behind, FIRST_BIN : FIRST_BIN + BINS] = bins(behind - first)
    columns[embedding : embedding + width, EMBEDDING] = 1
    columns[embedding + width :, QUERY] = 1
    # The first position is the sink, also where a tokenizer sets nothing in front (Qwen).
    opening = max(1, len(scorer.rows.documents.opening))
    columns[:opening] = 0
    columns[:opening, BEGINNING] = 1
    return embedding + width - 1, columns


def bins(length: int) -> Tensor:
    """Spreads the tokens of a passage over its relative bins: token j covers the stretch from j / L to (j + 1) / L.

    Args:
        length: Tokens of the passage, L.

    Returns:
        float64 [length, BINS]; every row sums to 1.
    """
    token, edge = torch.arange(length, dtype=torch.float64)[:, None], torch.arange(BINS, dtype=torch.float64)
    start, end = token * BINS / max(length, 1), (token + 1) * BINS / max(length, 1)
    overlap = (torch.minimum(end, edge + 1) - torch.maximum(start, edge)).clamp(min=0)
    return overlap * length / BINS


def check(settings: EvaluationSettings, card: RetrieverCard, paths: Paths) -> None:
    """Raises InputError where the adapted backbone is another one than the retriever was tuned from."""
    if settings.attention_queries and paths.adapted is not None:
        lineage_within(paths.adapted, card)


def extra(settings: EvaluationSettings, bench: Bench, card: RetrieverCard, paths: Paths) -> dict[str, Any]:
    """Analyses the backbone before and after stage one, where stage one trained it to generate queries.

    Returns:
        `attention`: `split`, `queries`, `pairs`, `columns`, and by model `layers` ([layers][columns]) and `embedding_share`.
    """
    if not settings.attention_queries or paths.adapted is None:
        return {}
    template = QueryPrompt.of(lineage_within(paths.adapted, card))
    if not template.is_trained:
        return {}
    split = bench.splits[0]
    pairs = _relevant_pairs(split, settings.attention_queries)
    if not pairs:
        return {}
    models = {"adapted backbone": paths.adapted}
    unknown = lacking(template, paths.backbone)
    if unknown:
        bench.notes.append(f"Where the backbone looked before stage one is not shown: it has no token {unknown}.")
    else:
        models = {"backbone": paths.backbone, **models}
    analysis = analysed(models, template, bench.passages, pairs, precision=settings.precision)
    return {"attention": {"split": split.name, "queries": len({query for query, _ in pairs}), **analysis}}


def _relevant_pairs(split: SplitResults, queries: int) -> list[tuple[str, str]]:
    """Pairs the text and each relevant passage of the first queries."""
    chosen = [query for query, text in split.queries.items() if text.strip()][:queries]
    return [
        (split.queries[query], passage)
        for query in chosen
        for passage, grade in split.qrels[query].items()
        if grade >= split.level
    ]
