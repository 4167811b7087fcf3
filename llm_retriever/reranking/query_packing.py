"""Packs queries of the same passage into one row: the passage goes through the model once for all of them.

A row is the document part, the embedding tokens [E], and one query part behind the other. Each query sees what stands before
the queries, and itself; its position ids begin where those of the first one do. So it is what it is in a row of its own, and
a row with one query is the row of stage one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llm_retriever.models import masks
from llm_retriever.models.batches import padded


@dataclass
class Pack:
    """One row.

    Attributes:
        document: Ids of the document part.
        queries: Ids of the query parts, each closed by the end-of-sequence token.
        pairs: Which pair each query is of.
        embedding: Ids of [E].
    """

    document: list[int]
    embedding: list[int]
    queries: list[list[int]] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)

    @property
    def start(self) -> int:
        """Position of the first token of the first query."""
        return len(self.document) + len(self.embedding)

    def __len__(self) -> int:
        return self.start + sum(map(len, self.queries))

    @property
    def ids(self) -> list[int]:
        """Token ids of the row."""
        return [*self.document, *self.embedding, *(token for query in self.queries for token in query)]

    def readings(self, end_of_sequence: bool = True) -> Iterator[tuple[int, int, int]]:
        """Yields every token of the queries: the position that predicts it, the token, and the pair.

        Args:
            end_of_sequence: Whether the token that closes a query is one of them.
        """
        begin = self.start
        for query, pair in zip(self.queries, self.pairs, strict=True):
            places = (self.start - 1, *range(begin, begin + len(query) - 1))
            tokens = query if end_of_sequence else query[:-1]
            yield from ((place, token, pair) for place, token in zip(places, tokens, strict=False))
            begin += len(query)


def packs(
    pairs: Sequence[tuple[str, str]],
    queries: dict[str, list[int]],
    documents: dict[str, list[int]],
    embedding: list[int],
) -> list[Pack]:
    """Packs the queries of a passage into few rows, each of at most as many query tokens as document tokens.

    Args:
        pairs: Query and passage.
        queries: Ids of the query parts, by query.
        documents: Ids of the document parts, by passage.
        embedding: Ids of [E].
    """
    open_, made = dict[str, Pack](), list[Pack]()
    for i, (query, passage) in enumerate(pairs):
        pack = open_.get(passage)
        if pack is None or len(pack) + len(queries[query]) > 2 * pack.start:
            pack = open_[passage] = Pack(documents[passage], embedding)
            made.append(pack)
        pack.queries.append(queries[query])
        pack.pairs.append(i)
    return made


def batch_of(rows: Sequence[Pack], pad: int) -> dict[str, Tensor]:
    """Pads packs on the right to a batch.

    Returns:
        `input_ids`, `attention_mask` (1 on real tokens), `position_ids` and `segments` (0 before the queries, then the
        query's number), int64 [B, width]; `embedding` int64 [B], the position of the first [E].
    """
    batch = padded([row.ids for row in rows], pad, "right")
    segments, positions = torch.zeros_like(batch["input_ids"]), torch.zeros_like(batch["input_ids"])
    for i, row in enumerate(rows):
        positions[i, : row.start] = torch.arange(row.start)
        begin = row.start
        for number, query in enumerate(row.queries, start=1):
            span = slice(begin, begin + len(query))
            segments[i, span], positions[i, span] = number, torch.arange(row.start, row.start + len(query))
            begin += len(query)
    embedding = torch.tensor([len(row.document) for row in rows])
    return {**batch, "position_ids": positions, "segments": segments, "embedding": embedding}


def mask_of(batch: dict[str, Tensor], attention_block: bool, dtype: torch.dtype) -> Tensor | None:
    """Builds the additive mask of a batch, float [B, 1, width, width]; None where ordinary causal attention is the same.

    Args:
        batch: As `batch_of` makes it.
        attention_block: Whether the queries see the passage through [E] alone (LLM-QL, Eq. 6).
        dtype: What the model computes in.
    """
    real, segments = batch["attention_mask"], batch["segments"]
    if not attention_block and int(segments.max()) <= 1:
        return None  # All pads are on the right, where no real token sees them.
    mask = masks.attention_block(real, batch["embedding"], dtype) if attention_block else masks.causal(real, dtype)
    query, other = segments[:, :, None], segments[:, None, :]
    apart = (query > 0) & (other > 0) & (query != other)
    return mask.masked_fill(apart[:, None], mask.min())
