"""A retriever in use: a causal LM, its tokenizer and the card that says how texts become vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_retriever.encoders.batched import (
    BATCH_TOKENS,
    PROCESSOR_BATCH_TOKENS,
    BatchedEncoder,
    check_finite,
    fitting,
)
from llm_retriever.encoders.interface import Side, Vectors
from llm_retriever.errors import InputError
from llm_retriever.files.seal import check_seal
from llm_retriever.methods import PromptTemplate
from llm_retriever.models import prompts
from llm_retriever.models.attention import check_bidirectional, set_attention
from llm_retriever.models.batches import pad_id, padded
from llm_retriever.models.card import MODEL_DIRECTORY, RetrieverCard, weights_digest
from llm_retriever.models.last_layer import LastLayer
from llm_retriever.models.loading import chosen_device, load_model, load_tokenizer
from llm_retriever.models.pooling import POOLINGS, pool, read
from llm_retriever.models.product_attention import use_products
from llm_retriever.models.shared_prefix import PrefixSharing
from llm_retriever.precision import DTYPES, Arithmetic
from llm_retriever.stores.opening import fetched

if TYPE_CHECKING:
    from llm_retriever.data.collection import Passage

__all__ = [
    "BATCH_TOKENS",
    "MODEL_DIRECTORY",
    "PROCESSOR_BATCH_TOKENS",
    "Retriever",
    "Side",
    "Vectors",
    "check_finite",
]


class Retriever(BatchedEncoder):
    """Encodes queries and passages the way the card says; `load` and `on_backbone` make one.

    Args:
        model: The inner model, without a language-model head.
        tokenizer: Its fast tokenizer.
        card: Prompt, read-out and lengths.

    Raises:
        InputError: The card asks for a bidirectional model, and this one cannot be; or for a pooling that is not known.

    Attributes:
        card: The card; its digest names the vectors' space.

    Example:
        >>> retriever = Retriever.load(path)
        >>> queries = retriever.encode_queries(["how old is the bridge", "who plays the violin"])
        >>> passages = retriever.encode_passages(["The bridge was built in 1302."])
        >>> (queries @ passages.T).shape
        (2, 1)
    """

    def __init__(self, model: Any, tokenizer: Any, card: RetrieverCard) -> None:
        if card.pooling not in POOLINGS:
            raise InputError(
                f"{card.pooling!r} is no pooling", field="pooling", hint=f"use one of {', '.join(POOLINGS)}"
            )
        self.model, self.tokenizer, self.card = model.eval(), tokenizer, card
        self._pad, self._encoders = pad_id(tokenizer), dict[Side, prompts.PromptEncoder]()
        self._sharing, self._last_layer = PrefixSharing(), LastLayer()
        set_attention(model, card.attention)
        if model.device.type == "cpu" and model.dtype == torch.bfloat16:
            use_products(model)
        # Padding on the right cannot reach a real token of a causal model: no mask is needed, and fast kernels apply.
        self._maskless = card.attention == "causal"
        if not self._maskless:
            check_bidirectional(model)

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None, precision: str = "auto") -> Retriever:
        """Loads the output of `tune_retriever` or a published version.

        Args:
            path: A directory or s3:// prefix with `retriever_card.json` and `model/`.
            device: As torch names it; None = the first GPU, or the processor.
            precision: `bf16`, `fp16`, `fp32`, or `auto` = bf16 where it is computed natively.

        Raises:
            InputError: There is no card, a file was changed, or the weights are not those that the card belongs to.
        """
        with fetched(path) as directory:
            check_seal(directory)
            card = RetrieverCard.load(directory)
            _check_weights(directory / MODEL_DIRECTORY, card)
            return cls(*_loaded(directory / MODEL_DIRECTORY, device, precision), card)

    @classmethod
    def merged(cls, directory: str | Path, *, device: str | None = None, precision: str = "auto") -> Retriever:
        """Loads a merged export: model, tokenizer and card in one directory.

        Raises:
            InputError: There is no card, or the weights are not those that the card belongs to.
        """
        card = RetrieverCard.load(directory)
        _check_weights(Path(directory), card)
        return cls(*_loaded(Path(directory), device, precision), card)

    @classmethod
    def on_backbone(
        cls, directory: str | Path, card: RetrieverCard, *, device: str | None = None, precision: str = "auto"
    ) -> Retriever:
        """Uses a backbone that was never tuned, with the prompts and pooling of `card`: a baseline.

        Its card is `card` with the backbone's own weights, so its vectors are not mistaken for those of another model.
        """
        directory = Path(directory)
        card = dataclasses.replace(card, weights=weights_digest(directory))
        return cls(*_loaded(directory, device, precision), card)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.card.method

    @property
    def query_length(self) -> int:
        """Tokens of a query in training, prompt included."""
        return self.card.query_length

    @property
    def passage_length(self) -> int:
        """Tokens of a passage in training, prompt included."""
        return self.card.passage_length

    def identity(self) -> str:
        """The card's digest, which names the vectors' space."""
        return self.card.digest()

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def normalised(self) -> bool:
        """Whether vectors have length 1."""
        return self.card.normalise

    @property
    def precision(self) -> Arithmetic:
        """Arithmetic of the model; vectors are float32 in any case."""
        return next((name for name, dtype in DTYPES.items() if dtype == self.model.dtype), "fp32")

    def tokenise_queries(self, texts: Sequence[str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises queries in their prompt, to at most `length` ids each."""
        return self.prompt("query", length).batch(texts)

    def tokenise_passages(self, passages: Sequence[Passage | str], *, length: int | None = None) -> list[list[int]]:
        """Tokenises passages in their prompt, to at most `length` ids each."""
        joiner = self.card.title_joiner
        texts = [p if isinstance(p, str) else prompts.passage_text(p.title, p.text, joiner) for p in passages]
        return self.prompt("passage", length).batch(texts)

    def prompt(self, side: Side, length: int | None = None) -> prompts.PromptEncoder:
        """Returns the prompt encoder for queries or passages, of at most `length` tokens; None = as in training.

        Raises:
            InputError: The length does not suit the model, or leaves no room for a text.
        """
        template: PromptTemplate = getattr(self.card, side)
        length = length or getattr(self.card, f"{side}_length")
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length > most:
            raise InputError(f"the model reads at most {most} tokens, not {length}", field="length")
        return prompts.PromptEncoder(self.tokenizer, template, length)

    @torch.inference_mode()
    def embed(self, side: Side, rows: Sequence[Sequence[int]]) -> Vectors:
        """Encodes one batch of tokenised texts of a side, float32 [rows, dimension].

        Raises:
            InputError: The batch does not fit into the GPU's memory.
        """
        # On the right whatever the card says: models that count positions from the first column would count pads.
        batch = padded(rows, self._pad, "right")
        ids, mask = batch["input_ids"].to(self.model.device), batch["attention_mask"].to(self.model.device)
        counts = self._counts(side, rows).to(mask.device) if POOLINGS[self.card.pooling].counted else None
        with fitting(ids.numel()):
            taken = read(mask, self.card.pooling, counts)
            # What the pooling reads is no part of the prefix.
            length = self._sharing.length(ids, taken.int().argmax(dim=1)) if self._maskless else 0
            prefix = self._sharing.prefix(self.model, ids, length)
            ids, mask, taken = (part[:, prefix.length :] for part in (ids, mask, taken))
            inputs = {"input_ids": ids, "attention_mask": None if self._maskless else mask, **prefix.inputs(len(ids))}
            hidden, taken = self._last_layer.states(self.model, taken, **inputs)
        return pool(hidden, taken, self.card.pooling, normalise=self.card.normalise).cpu().numpy()

    def _counts(self, side: Side, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        encoder = self._encoders.setdefault(side, self.prompt(side))
        return torch.tensor([encoder.pooled(row, POOLINGS[self.card.pooling].reads) for row in rows])


def _check_weights(directory: Path, card: RetrieverCard) -> None:
    if not card.weights:
        raise InputError(
            "the card does not say which weights it belongs to",
            file=directory.parent,
            field="weights",
            hint="make the retriever anew with tune_retriever",
        )
    if weights_digest(directory) != card.weights:
        raise InputError(
            "the weights are not those that the card belongs to",
            file=directory,
            field="weights",
            hint="copy the whole retriever again, card and model from one place",
        )


def _loaded(directory: Path, device: str | None, precision: str) -> tuple[Any, Any]:
    """Loads model without head, and tokenizer."""
    model, _ = load_model(directory, precision)
    return model.to(chosen_device(device)), load_tokenizer(directory)
