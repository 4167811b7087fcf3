"""The interface of all that turns texts into vectors, whether this project tuned it or somebody published it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llm_retriever.data.collection import Passage

Vectors = NDArray[np.float32]
Side = Literal["query", "passage"]
Report = Callable[[Sequence[int], int], None]


class Encoder(Protocol):
    """A dense encoder of queries and passages; the score of a pair is the inner product of its vectors."""

    @property
    def name(self) -> str:
        """Name for people."""

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""

    @property
    def normalised(self) -> bool:
        """Whether vectors have length 1; the inner product is the cosine then."""

    @property
    def precision(self) -> Literal["bf16", "fp16", "fp32"]:
        """Arithmetic of the model; vectors are float32 in any case."""

    @property
    def passage_length(self) -> int:
        """Tokens of a passage unless told otherwise, prompt included."""

    @property
    def query_length(self) -> int:
        """Tokens of a query unless told otherwise, prompt included."""

    def identity(self) -> str:
        """SHA-256 over all that decides the vectors; an index refuses queries from another identity."""

    def tokenise_queries(self, texts: Sequence[str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises queries in their prompt, to at most `length` ids each; None = `query_length`."""

    def tokenise_passages(self, passages: Sequence[Passage | str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises passages in their prompt, to at most `length` ids each; None = `passage_length`."""

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

    def encode_queries(self, texts: Sequence[str], *, length: int | None = None, progress: bool = False) -> Vectors:
        """Encodes queries, float32 [texts, dimension]."""

    def encode_passages(
        self, passages: Sequence[Passage | str], *, length: int | None = None, progress: bool = False
    ) -> Vectors:
        """Encodes passages, float32 [passages, dimension]."""
