"""Published retrievers made of LLMs: `Retriever` with a card that the table writes, on a base with its adapters merged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_retriever import files
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.encoders.rows import Row
from llm_retriever.encoders.weights import ADAPTER_CONFIG, no_weights, tokenizer_digest, with_adapters
from llm_retriever.errors import InputError
from llm_retriever.methods import Method
from llm_retriever.models.card import Lineage, RetrieverCard, weights_digest
from llm_retriever.models.loading import chosen_device, load_model, load_tokenizer
from llm_retriever.precision import dtype_of


class PublishedRetriever(Retriever):
    """A retriever made of an LLM by somebody else.

    Args:
        model: The inner model, adapters merged.
        tokenizer: Its fast tokenizer.
        card: As the row says.
        name: The row's name.
    """

    def __init__(self, model: Any, tokenizer: Any, card: RetrieverCard, name: str) -> None:
        super().__init__(model, tokenizer, card)
        self._name = name

    @property
    def name(self) -> str:
        """Name for people."""
        return self._name


def load(
    row: Row, method: Method, directories: Sequence[Path], *, device: str | None = None, precision: str = "auto"
) -> Retriever:
    """Loads an LLM row.

    Args:
        row: Name and parts.
        method: The row's.
        directories: The base, then its adapters in their order; or a single model that has them merged.
        device: As torch names it; None = the first GPU, or the processor.
        precision: `bf16`, `fp16`, `fp32`, or `auto` = bf16 where it is native.

    Raises:
        InputError: A model or an adapter is missing, or they do not fit each other.
    """
    base, *adapters = directories
    if (base / ADAPTER_CONFIG).is_file():
        raise InputError(
            "an adapter without its base", file=base, hint=f"give both, base first: {row.name}=BASE,ADAPTER"
        )
    if not any(base.glob("*.safetensors")):
        raise no_weights(base)
    model, _ = load_model(base, "fp32" if adapters else precision)
    tokenizer = load_tokenizer(base)
    if adapters:
        model = with_adapters(model, adapters).to(dtype_of(precision))
    weights = files.digest([[weights_digest(directory) for directory in directories], tokenizer_digest(base)])
    card = RetrieverCard.of(method, Lineage(row.parts[-1].id), weights=weights)
    return PublishedRetriever(model.to(chosen_device(device)), tokenizer, card, row.name)
