"""A retriever in use: a causal LM, its tokenizer and the card that says how texts become vectors."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from llm_retriever import prompts
from llm_retriever.batches import pad_id, padded, read_out, token_batches
from llm_retriever.card import RetrieverCard, weights_digest
from llm_retriever.encoders.interface import Report, Side, Vectors
from llm_retriever.errors import InputError
from llm_retriever.methods import Wording
from llm_retriever.precision import dtype_of
from llm_retriever.progress import Progress
from llm_retriever.store import fetched

if TYPE_CHECKING:
    from llm_retriever.collection import Passage

MODEL_DIRECTORY = "model"
BATCH_TOKENS = 16_384
PROCESSOR_BATCH_TOKENS = 2048
"""More tokens at once leave a processor's caches; measured on 7 M parameters, 16,384 are a quarter slower."""


class Retriever:
    """Encodes queries and passages the way the card says; `load` and `on_backbone` make one.

    Args:
        model: The inner model, without a language-model head.
        tokenizer: Its fast tokenizer.
        card: Wording, read-out and lengths.

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
        self.model, self.tokenizer, self.card = model.eval(), tokenizer, card
        self._pad, self._encoders = pad_id(tokenizer), dict[Side, prompts.PromptEncoder]()
        model.config.is_causal = card.attention == "causal"
        # Padding on the right cannot reach a real token of a causal model: no mask is needed, and fast kernels apply.
        self._maskless = card.attention == "causal"

    @classmethod
    def load(cls, path: str | Path, *, device: str | None = None, precision: str = "auto") -> Retriever:
        """Loads the output of `tune_retriever` or a published version.

        Args:
            path: A directory or s3:// prefix with `retriever_card.json` and `model/`.
            device: As torch names it; None = the first GPU, or the processor.
            precision: `bf16`, `fp32`, or `auto` = bf16 where it is computed natively.

        Raises:
            InputError: There is no card, or the weights are not those that the card belongs to.
        """
        with fetched(path) as directory:
            card = RetrieverCard.load(directory)
            _check_weights(directory / MODEL_DIRECTORY, card)
            return cls(*_loaded(directory / MODEL_DIRECTORY, device, precision), card)

    @classmethod
    def on_backbone(
        cls, directory: str | Path, card: RetrieverCard, *, device: str | None = None, precision: str = "auto"
    ) -> Retriever:
        """Uses a backbone that was never tuned, worded and read out by `card`: a baseline.

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
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """Arithmetic of the model; vectors are float32 in any case."""
        return "bf16" if self.model.dtype == torch.bfloat16 else "fp32"

    def encode_queries(
        self,
        texts: Sequence[str],
        *,
        length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool = False,
    ) -> Vectors:
        """Vectors of queries.

        Args:
            texts: The queries as they are; the card words them.
            length: Tokens of a query, prompt included; None = as in training.
            batch_tokens: Tokens, padding included, that go through the model at once.
            progress: Show progress on standard error.

        Returns:
            float32 [texts, dimension], in the order of `texts`.

        Raises:
            InputError: A vector is not finite, or the length does not suit the model.
        """
        rows = self.tokenise_queries(texts, length=length)
        vectors = self._encode("query", rows, batch_tokens, "encode queries" if progress else "", "queries")
        refuse_non_finite(vectors, [f"the query {text!r}" for text in texts])
        return vectors

    def encode_passages(
        self,
        passages: Sequence[Passage | str],
        *,
        length: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        progress: bool = False,
    ) -> Vectors:
        """Vectors of passages, float32 [passages, dimension]; a title is put in front as in training.

        Arguments and errors are those of `encode_queries`. A whole corpus is better encoded by
        `llm_retriever.indexing.build.build_index`, which does not hold it in memory.
        """
        rows = self.tokenise_passages(passages, length=length)
        vectors = self._encode("passage", rows, batch_tokens, "encode passages" if progress else "", "passages")
        names = [f"passage {i}" if isinstance(p, str) else f"passage {p.id!r}" for i, p in enumerate(passages)]
        refuse_non_finite(vectors, names)
        return vectors

    def tokenise_queries(self, texts: Sequence[str], *, length: int | None = None) -> list[list[int]]:
        """Token ids of worded queries, at most `length` each."""
        return self.prompt("query", length).batch(texts)

    def tokenise_passages(self, passages: Sequence[Passage | str], *, length: int | None = None) -> list[list[int]]:
        """Token ids of worded passages, at most `length` each."""
        joiner = self.card.title_joiner
        texts = [p if isinstance(p, str) else prompts.passage_text(p.title, p.text, joiner) for p in passages]
        return self.prompt("passage", length).batch(texts)

    def prompt(self, side: Side, length: int | None = None) -> prompts.PromptEncoder:
        """What words the texts of a side, in at most `length` tokens; None = as in training.

        Raises:
            InputError: The length does not suit the model, or leaves no room for a text.
        """
        wording: Wording = getattr(self.card, side)
        length = length or getattr(self.card, f"{side}_length")
        most = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and length > most:
            raise InputError(f"the model reads at most {most} tokens, not {length}", field="length")
        return prompts.PromptEncoder(self.tokenizer, wording, length)

    def _encode(self, side: Side, rows: Sequence[Sequence[int]], batch_tokens: int, title: str, unit: str) -> Vectors:
        with Progress(title, len(rows), unit, quiet=not title) as progress:
            return self.encode_rows(side, rows, batch_tokens, lambda batch, _: progress.update(len(batch)))

    def encode_rows(
        self, side: Side, rows: Sequence[Sequence[int]], batch_tokens: int, report: Report = lambda batch, slots: None
    ) -> Vectors:
        """Vectors of tokenised texts, float32 [rows, dimension], in the order of `rows`.

        Args:
            side: `query` or `passage`.
            rows: Token ids, from `tokenise_queries` or `tokenise_passages`.
            batch_tokens: Tokens, padding included, that go through the model at once, at most.
            report: Called after each batch with the positions of its rows and its tokens, padding included.
        """
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        lengths = [len(row) for row in rows]
        budget = min(batch_tokens, PROCESSOR_BATCH_TOKENS) if self.model.device.type == "cpu" else batch_tokens
        for batch in token_batches(lengths, budget):
            vectors[batch] = self.embed(side, [rows[i] for i in batch])
            report(batch, len(batch) * lengths[batch[0]])
        return vectors

    @torch.inference_mode()
    def embed(self, side: Side, rows: Sequence[Sequence[int]]) -> Vectors:
        """Vectors of one batch of tokenised texts of a side, float32 [rows, dimension].

        Raises:
            InputError: The batch does not fit into the GPU's memory.
        """
        batch = padded(rows, self._pad, "right" if self._maskless else self.card.padding_side)
        ids, mask = batch["input_ids"].to(self.model.device), batch["attention_mask"].to(self.model.device)
        try:
            output = self.model(input_ids=ids, attention_mask=None if self._maskless else mask, use_cache=False)
        except torch.OutOfMemoryError:
            raise InputError(
                f"{ids.numel()} tokens at once do not fit into the GPU's memory",
                field="batch_tokens",
                mend=f"use {ids.numel() // 2} or fewer",
            ) from None
        pooled = None if self.card.pooling == "last" else self._pooled(side, rows).to(mask.device)
        return read_out(output.last_hidden_state, mask, self.card.normalise, pooled).cpu().numpy()

    def _pooled(self, side: Side, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        encoder = self._encoders.setdefault(side, self.prompt(side))
        return torch.tensor([encoder.pooled(row, self.card.pooling) for row in rows])

    def export(self, directory: str | Path, format: Literal["merged", "sentence-transformers"] = "merged") -> None:
        """Writes the retriever for programs without this library; the weights keep the precision that they have here.

        Args:
            directory: Becomes the export; what is there is replaced.
            format: `merged` = a plain Hugging Face directory with card and README.md; `sentence-transformers` = what that
                library loads, where it can express the method.

        Raises:
            InputError: The export would not give the same vectors (see `llm_retriever.exports`); nothing is written then.
        """
        from llm_retriever import exports

        export = exports.export_merged if format == "merged" else exports.export_sentence_transformers
        export(self, directory)


def refuse_non_finite(vectors: NDArray[np.floating[Any]], names: Sequence[str]) -> None:
    """Raises InputError with the name of the first row that holds a NaN or an infinity."""
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(wrong):
        raise InputError(
            f"the vector of {names[wrong[0]]} is not finite ({len(wrong)} of {len(vectors)} are not)",
            mend="use precision fp32; if it persists, the model itself is broken: look at its training curves",
        )


def _check_weights(directory: Path, card: RetrieverCard) -> None:
    if not card.weights:
        raise InputError(
            "the card does not say which weights it belongs to",
            file=directory.parent,
            field="weights",
            mend="make the retriever anew with tune_retriever",
        )
    if weights_digest(directory) != card.weights:
        raise InputError(
            "the weights are not those that the card belongs to",
            file=directory,
            field="weights",
            mend="copy the whole retriever again, card and model from one place",
        )


def _loaded(directory: Path, device: str | None, precision: str) -> tuple[Any, Any]:
    """Model without head and tokenizer; only safetensors, no code from the directory, no weight left to chance."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model, loading = AutoModel.from_pretrained(
                directory,
                dtype=dtype_of(precision),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise InputError(f"the model cannot be loaded ({error})", file=directory) from None
    if loading["missing_keys"]:
        raise InputError(f"the weights lack {sorted(loading['missing_keys'])[0]}", file=directory)
    return model.to(device), tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Transformers reports the unused language-model head as an anomaly, and loading with a bar of its own."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
