"""The fields of the table of published encoders: models, prompts, pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llm_retriever.encoders.interface import Side
from llm_retriever.methods import Method

Title = Literal["joined", "pair", "typed pair"]


@dataclass(frozen=True)
class Part:
    """One model, or one adapter, on the Hugging Face hub.

    Attributes:
        name: What it is in its row: `model`; `query` and `passage`; `base` and the adapters on it, in their order.
        id: Hugging Face id.
        revision: The commit that is downloaded; "" = not known, and asked for.
        kind: Class in transformers that knows its weights.
        inner: Path of attributes from that class to the encoder within it; "" = itself.
    """

    name: str
    id: str
    revision: str = ""
    kind: str = "AutoModel"
    inner: str = ""


@dataclass(frozen=True)
class Head:
    """A layer between pooling and vector, whose weights are taken from the checkpoint.

    Attributes:
        kind: `linear` or `layer norm`.
        weights: Name of its weights, without `.weight` and `.bias`.
        bias: Whether a linear layer has one.
        folder: Folder of their file within the model's; "" = they are among the model's weights.
        activation: Function after it.
    """

    kind: Literal["linear", "layer norm"]
    weights: str
    bias: bool = True
    folder: str = ""
    activation: Literal["identity", "tanh"] = "identity"


@dataclass(frozen=True)
class Wiring:
    """The way from a text to its vector, for encoders of the BERT, T5 and GPT families; the score is the inner product.

    Attributes:
        query_length, passage_length: Tokens, special ones and prefix included.
        pooling: A row of `llm_retriever.models.pooling`: `cls`, `mean`, `weighted mean`, `last`.
        normalise: Scale to length 1; the inner product is the cosine then.
        title: How a passage's title goes in: `joined` = title, `joiner`, text as one string; `pair` = the tokenizer's pair
            of title and text (`[CLS] title [SEP] text [SEP]`), all of token type 0; `typed pair` = the same, the text of
            token type 1.
        joiner: Between title and text, for `joined`.
        empty_title: Stands for a title that is empty; "" = the text goes in alone.
        query_prefix, passage_prefix: Before the text, within its string.
        query_brackets, passage_brackets: Tokens around the ids, in place of those that the tokenizer would add.
        heads: Layers after pooling.
        padding_side: Where a batch is padded; positions and weights of these models count from the left.
        dtype: Precision that `auto` means; `auto` = bf16 where it is native.
        pool_prefix: Whether the prefix's tokens are part of a mean.
        lower_case: Whether texts are made lower-case before tokenisation.
    """

    query_length: int
    passage_length: int
    pooling: str = "cls"
    normalise: bool = False
    title: Title = "joined"
    joiner: str = " "
    empty_title: str = ""
    query_prefix: str = ""
    passage_prefix: str = ""
    query_brackets: tuple[str, str] | None = None
    passage_brackets: tuple[str, str] | None = None
    heads: tuple[Head, ...] = ()
    padding_side: Literal["right"] = "right"
    dtype: str = "auto"
    pool_prefix: bool = True
    lower_case: bool = False
    score: str = "inner_product"

    def prefix(self, side: Side) -> str:
        """String before a text of a side."""
        return self.query_prefix if side == "query" else self.passage_prefix

    def brackets(self, side: Side) -> tuple[str, str] | None:
        """Tokens around the ids of a side."""
        return self.query_brackets if side == "query" else self.passage_brackets

    def length(self, side: Side) -> int:
        """Tokens of a text of a side."""
        return self.query_length if side == "query" else self.passage_length


@dataclass(frozen=True)
class Row:
    """A published encoder.

    Attributes:
        name: What users call it.
        source: Paper, and where the wiring is published.
        parts: Its models: one for both sides; `query` and `passage`; or a base and the adapters on it.
        wiring: How it reads texts; LLM retrievers read them as a method of `llm_retriever.methods` does.
        package: Python package that has its files, if one is installed.
    """

    name: str
    source: str
    parts: tuple[Part, ...]
    wiring: Wiring | Method
    package: str = ""

    @property
    def two_models(self) -> bool:
        """Whether queries and passages have models of their own."""
        return [part.name for part in self.parts] == ["query", "passage"]
