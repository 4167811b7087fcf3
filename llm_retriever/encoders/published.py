"""Published encoders of the BERT, T5 and GPT families, wired by a row of the table or by a sentence-transformers directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from llm_retriever import files
from llm_retriever.encoders.batched import BatchedEncoder, fitting
from llm_retriever.encoders.interface import Side, Vectors
from llm_retriever.encoders.prompt_template import PromptTokenizer
from llm_retriever.encoders.rows import Row, Wiring
from llm_retriever.encoders.weights import Tower, load_tower
from llm_retriever.errors import InputError
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.loading import chosen_device
from llm_retriever.models.pooling import pool
from llm_retriever.precision import DTYPES, Arithmetic

if TYPE_CHECKING:
    from llm_retriever.data.collection import Passage

SIDES: tuple[Side, Side] = ("query", "passage")


class PublishedEncoder(BatchedEncoder):
    """Encodes queries and passages as its wiring says; `llm_retriever.encoders.load` makes one.

    Args:
        name: What people call it.
        wiring: From texts to vectors.
        towers: The model of each side; the same one twice where they share it.

    Raises:
        InputError: The two sides' vectors have different dimensions, or a tokenizer does not suit the wiring.
    """

    def __init__(self, name: str, wiring: Wiring, towers: dict[Side, Tower]) -> None:
        self._name, self.wiring, self.towers = name, wiring, towers
        sizes = {side: tower.dimension for side, tower in towers.items()}
        if sizes["query"] != sizes["passage"]:
            raise InputError(f"queries have {sizes['query']} dimensions and passages {sizes['passage']}", file=name)
        self._worders = {side: PromptTokenizer(towers[side].tokenizer, wiring, side) for side in SIDES}
        self._skip = {side: 0 if wiring.pool_prefix else self._worders[side].prefix_length() for side in SIDES}

    @classmethod
    def load(
        cls,
        row: Row,
        wiring: Wiring,
        directories: Sequence[Path],
        *,
        device: str | None = None,
        precision: str = "auto",
    ) -> PublishedEncoder:
        """Loads the models of a row.

        Args:
            row: Name and parts.
            wiring: The row's.
            directories: The directory of each of its parts.
            device: As torch names it; None = the first GPU, or the processor.
            precision: `bf16`, `fp16`, `fp32`, or `auto` = what the row says.

        Raises:
            InputError: A model cannot be loaded as it is, or weights are missing.
        """
        precision = wiring.dtype if precision == "auto" else precision
        loaded = {
            part.name: load_tower(directory, part, wiring.heads, chosen_device(device), precision)
            for part, directory in zip(row.parts, directories, strict=True)
        }
        towers: dict[Side, Tower] = {side: loaded[side if row.two_models else row.parts[0].name] for side in SIDES}
        return cls(row.name, wiring, towers)

    @property
    def name(self) -> str:
        """Name for people."""
        return self._name

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.towers["query"].dimension

    @property
    def normalised(self) -> bool:
        """Whether vectors have length 1."""
        return self.wiring.normalise

    @property
    def device(self) -> torch.device:
        """Device of the models."""
        return self.towers["query"].model.device

    @property
    def precision(self) -> Arithmetic:
        """Arithmetic of the models; heads compute in fp32, and vectors are float32 in any case."""
        return next((name for name, dtype in DTYPES.items() if dtype == self.towers["query"].model.dtype), "fp32")

    @property
    def query_length(self) -> int:
        """Tokens of a query unless told otherwise, prefix and special tokens included."""
        return self.wiring.query_length

    @property
    def passage_length(self) -> int:
        """Tokens of a passage unless told otherwise, prefix and special tokens included."""
        return self.wiring.passage_length

    def identity(self) -> str:
        """SHA-256 over wiring, weights and tokenizers; the same from wherever the files come."""
        return files.digest([dataclasses.asdict(self.wiring), [self.towers[side].digest for side in SIDES]])

    def tokenise_queries(self, texts: Sequence[str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises queries in their prompt, to at most `length` ids each; None = `query_length`."""
        return self._worders["query"].queries(texts, self._length("query", length))

    def tokenise_passages(self, passages: Sequence[Passage | str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises passages in their prompt, to at most `length` ids each; None = `passage_length`."""
        return self._worders["passage"].passages(passages, self._length("passage", length))

    def _length(self, side: Side, length: int | None) -> int:
        length, most = length or self.wiring.length(side), _most_tokens(self.towers[side].model)
        if most is not None and length > most:
            raise InputError(f"the model reads at most {most} tokens, not {length}", field="length")
        return length

    @torch.inference_mode()
    def embed(self, side: Side, rows: Sequence[Sequence[int]]) -> Vectors:
        """Encodes one batch of tokenised texts of a side, float32 [rows, dimension].

        Raises:
            InputError: The batch does not fit into the GPU's memory.
        """
        tower, wiring = self.towers[side], self.wiring
        batch = padded(rows, pad_id(tower.tokenizer), wiring.padding_side)
        if wiring.title == "typed pair":
            batch["token_type_ids"] = token_types(
                batch["input_ids"], batch["attention_mask"], tower.tokenizer.sep_token_id
            )
        batch = {name: tensor.to(tower.model.device) for name, tensor in batch.items()}
        with fitting(batch["input_ids"].numel()):
            hidden = tower.model(**batch).last_hidden_state
            vectors = tower.heads(pool(hidden, batch["attention_mask"], wiring.pooling, skip=self._skip[side]))
        return (functional.normalize(vectors, dim=-1) if wiring.normalise else vectors).cpu().numpy()


def token_types(ids: Tensor, mask: Tensor, separator: int) -> Tensor:
    """Token types of a pair, int64 [rows, width]: 1 on what follows the first separator, 0 before it and on padding.

    Args:
        ids: [rows, width].
        mask: [rows, width].
        separator: Id of the token that ends the first text of the pair, and belongs to it.
    """
    ends = (ids == separator).long()
    return ((ends.cumsum(dim=1) - ends > 0) & mask.bool()).long()


def _most_tokens(model: Any) -> int | None:
    """Number of tokens that a model has positions for; None = any number (T5)."""
    most = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa and its kin count positions from after that of the padding token.
    first = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return None if most is None else most - (0 if first is None else first + 1)
