"""Shared encoding: batches of similar length under a token budget, progress, and no vector that is not finite."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from llm_retriever.encoders.interface import Report, Side, Vectors
from llm_retriever.errors import InputError
from llm_retriever.models.batches import token_batches
from llm_retriever.progress import Progress

if TYPE_CHECKING:
    from llm_retriever.data.collection import Passage

BATCH_TOKENS = 16_384
PROCESSOR_BATCH_TOKENS = 2048
"""More tokens at once leave a processor's caches; measured on 7 M parameters, 16,384 are a quarter slower."""


class BatchedEncoder(ABC):
    """An encoder whose subclasses tokenise texts and turn one batch of token ids into vectors.

    Attributes:
        table_row: `ROW` or `ROW@COMMIT` if `encoders.load` knew it by that alone, from the table; else empty.
    """

    table_row: str = ""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Numbers in a vector."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the model."""

    @abstractmethod
    def tokenise_queries(self, texts: Sequence[str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises queries in their prompt, to at most `length` ids each."""

    @abstractmethod
    def tokenise_passages(self, passages: Sequence[Passage | str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises passages in their prompt, to at most `length` ids each."""

    @abstractmethod
    def embed(self, side: Side, rows: Sequence[Sequence[int]]) -> Vectors:
        """Encodes one batch of tokenised texts of a side, float32 [rows, dimension]."""

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool = False,
    ) -> Vectors:
        """Encodes queries.

        Args:
            texts: The queries as they are; the encoder words them.
            length: Tokens of a query, prompt included; None = the encoder's own.
            batch_tokens: Tokens, padding included, that go through the model at once.
            progress: Show progress on standard error.

        Returns:
            float32 [texts, dimension], in the order of `texts`.

        Raises:
            InputError: A vector is not finite, or the length does not suit the model.
        """
        rows = self.tokenise_queries(texts, length=length)
        vectors = self._encode("query", rows, batch_tokens, "encode queries" if progress else "", "queries")
        check_finite(vectors, [f"the query {text!r}" for text in texts])
        return vectors

    def encode_passages(
        self,
        passages: Sequence[Passage | str],
        *,
        length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool = False,
    ) -> Vectors:
        """Encodes passages, float32 [passages, dimension]; a title is put in front as in training.

        Arguments and errors are those of `encode_queries`. A whole corpus is better encoded by
        `llm_retriever.indexing.build.build_index`, which does not hold it in memory.
        """
        rows = self.tokenise_passages(passages, length=length)
        vectors = self._encode("passage", rows, batch_tokens, "encode passages" if progress else "", "passages")
        names = [f"passage {i}" if isinstance(p, str) else f"passage {p.id!r}" for i, p in enumerate(passages)]
        check_finite(vectors, names)
        return vectors

    def _encode(self, side: Side, rows: Sequence[Sequence[int]], batch_tokens: int, title: str, unit: str) -> Vectors:
        with Progress(title, len(rows), unit, quiet=not title) as progress:
            return self.encode_rows(side, rows, batch_tokens, lambda batch, _: progress.update(len(batch)))

    def encode_rows(
        self, side: Side, rows: Sequence[Sequence[int]], batch_tokens: int, report: Report = lambda batch, slots: None
    ) -> Vectors:
        """Encodes tokenised texts, float32 [rows, dimension], in the order of `rows`.

        Args:
            side: `query` or `passage`.
            rows: Token ids, from `tokenise_queries` or `tokenise_passages`.
            batch_tokens: Tokens, padding included, that go through the model at once, at most.
            report: Called after each batch with the positions of its rows and its tokens, padding included.
        """
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        lengths = [len(row) for row in rows]
        budget = min(batch_tokens, PROCESSOR_BATCH_TOKENS) if self.device.type == "cpu" else batch_tokens
        for batch in token_batches(lengths, budget):
            vectors[batch] = self.embed(side, [rows[i] for i in batch])
            report(batch, len(batch) * lengths[batch[0]])
        return vectors


@contextlib.contextmanager
def fitting(tokens: int) -> Iterator[None]:
    """Turns out-of-memory errors of a GPU during a batch into an InputError that names the setting."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            f"{tokens} tokens at once do not fit into the GPU's memory",
            field="batch_tokens",
            hint=f"use {tokens // 2} or fewer",
        ) from None


def check_finite(vectors: NDArray[np.floating[Any]], names: Sequence[str]) -> None:
    """Raises InputError with the name of the first row that holds a NaN or an infinity."""
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise InputError(
            f"the vector of {names[wrong[0]]} is not finite ({len(wrong)} of {len(vectors)} are not)",
            hint="use precision fp32; if it persists, the model itself is broken: look at its training curves",
        )
