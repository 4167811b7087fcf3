"""The fields of the methods table: prompts, pooling, recipes of both stages.

A retrieval method is how a text is worded and read out (`Method`) plus how the model is tuned (`ContrastiveRecipe`). Each
stage-one objective has a recipe class of its own (`AdaptationRecipe`). The rows themselves are in `retrieval.py` (stage two)
and `adaptation.py` (stage one).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

Tokenisation = Literal["whole", "pieces"]
Attention = Literal["causal", "bidirectional"]
Weights = Literal["full", "lora"]

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt around a text.

    Attributes:
        prefix: What stands before the text, spaces included; several strings are tokenised each for itself (Echo).
        suffix: What stands after the text and before the embedding tokens.
        tokenise: `whole` = the string at once; `pieces` = prefix, text and suffix each for itself, ids concatenated. The
            two give different ids under SentencePiece tokenizers, which start every piece with a space.
        embedding_tokens: Appended after the suffix, as ids; `eos` is the tokenizer's end-of-sequence token. Empty = the
            vector is read at the prompt's or the text's own last token.
        between: Where it is not None, the text comes twice, equally cut, with this string between the copies (Echo);
            always tokenised as pieces.
    """

    prefix: str | tuple[str, ...]
    suffix: str
    tokenise: Tokenisation = "whole"
    embedding_tokens: tuple[str, ...] = ("eos",)
    between: str | None = None

    def __post_init__(self) -> None:
        if self.between is not None and self.tokenise != "pieces":
            raise ValueError("two copies of a text are tokenised as pieces, or they could not be cut alike")
        if not isinstance(self.prefix, str) and self.tokenise != "pieces":
            raise ValueError("a prefix of several pieces goes with a text that is tokenised for itself")

    @property
    def prefix_pieces(self) -> tuple[str, ...]:
        """Strings before the text, as they are tokenised."""
        return (self.prefix,) if isinstance(self.prefix, str) else self.prefix


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter; `alpha / rank` scales its update."""

    rank: int = 32
    alpha: int = 64
    dropout: float = 0.1
    targets: tuple[str, ...] = ALL_PROJECTIONS


@dataclass(frozen=True)
class Schedule:
    """Length, learning rate and batches of a training.

    Attributes:
        epochs: Passes over the training pairs.
        max_steps: Updates after which training stops early; -1 = never.
        batch_size: Queries per update, over all processes and accumulation steps.
        micro_batch_size: Queries that one process holds at once; in contrastive tuning it bounds the in-batch negatives.
        learning_rate: Peak of the linear schedule (AdamW).
        warmup: Share of all updates if below 1, else a number of updates.
        warmup_shape: How the rate rises: `linear`, or `logarithmic`, `log(u + 1) / log(warmup)` in update u counted from 0, as
            under DeepSpeed's `WarmupDecayLR`.
        decay_epochs: Epochs that the decay is planned over, though `max_steps` ends the training before; 0 = it ends with it.
        weight_decay: Of AdamW.
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    epochs: float
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup: float
    max_steps: int = -1
    warmup_shape: Literal["linear", "logarithmic"] = "linear"
    decay_epochs: float = 0.0
    weight_decay: float = 0.0
    gradient_checkpointing: bool = True


class Workload(Protocol):
    """Amounts of data to train on, as an estimate knows them."""

    @property
    def passages(self) -> float:
        """Number of passages in the corpus."""

    @property
    def queries(self) -> float:
        """Number of training queries."""

    @property
    def passage_tokens(self) -> float:
        """Mean tokens of a passage; 0 = not known."""

    def passage(self, longest: int) -> float:
        """Tokens of a passage that is cut at `longest`."""

    def query(self, longest: int) -> float:
        """Tokens of a query that is cut at `longest`."""


class Rows(NamedTuple):
    """What an epoch of stage one sends through the model: tokens of a row, those whose logits are computed, rows."""

    tokens: float
    labels: float
    number: float


@dataclass(frozen=True, kw_only=True)
class AdaptationRecipe:
    """The recipe of a stage-one objective. Its class is the objective's descriptor: all that is known without its module.

    Attributes:
        module: Module in `llm_retriever.adaptation` whose `objective(task)` makes examples, batches and loss.
        help: What the objective is, for the help of the setting `method`; objectives that share a text share a clause.
        length: What `passage_length` counts, for the help of that setting.
        tuned_for: The retrieval method whose prompts and embedding tokens are trained.
        reads_embedding: Whether rows hold the method's embedding tokens, and hide some tokens from others.
        order: How a batch goes through the model: `by length` = rows of like length together, read at `logits_to_keep`; `as
            it is` = the same, but only after memory ran out, because rows are of one length; `whole` = never in parts.
        views: How often a text goes through the model for one example.
        tune: `full` or `lora`.
        passage_length: Tokens of a row, or of its passage.
    """

    module: ClassVar[str]
    help: ClassVar[str]
    length: ClassVar[str]
    tuned_for: ClassVar[str]
    reads_embedding: ClassVar[bool] = False
    order: ClassVar[Literal["by length", "as it is", "whole"]] = "whole"
    views: ClassVar[int] = 1

    tune: Weights
    passage_length: int
    schedule: Schedule
    lora: Lora

    def parts(self, method: Method, opening: int, tokens: Callable[[str], int]) -> dict[str, int]:
        """Most tokens of each part of a row that stand at positions of their own, by what the part is called.

        Args:
            method: The tuned retrieval method.
            opening: Tokens that every row begins with.
            tokens: Counts the tokens of a text for itself.
        """
        return {"passage_length": self.passage_length}

    def rows(self, work: Workload) -> Rows:
        """Rows that an epoch sends through the model, for the estimate of its cost."""
        length = self.views * work.passage(self.passage_length)
        return Rows(length, length, work.passages)


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Stage two: in-batch and hard negatives, cosine similarity over a temperature (LLM-QL Eq. 12).

    Attributes:
        passages_per_query: The positive and `passages_per_query - 1` hard negatives (g).
        temperature: τ; 1 where the paper prints none.
        gradient_cache: Rows that are encoded at once with gradients (GradCache); 0 = the micro-batch as a whole.
        mask_positives: Whether a query's positives are left out where they stand in the pool as other queries' passages.
        sources: `mixed`, or `homogeneous` = the queries of an update come from one data set.
        distillation_weight: Of the divergence from a teacher's scores, beside the contrastive loss; 0 = left out.
        distillation_temperature: What the teacher's scores are divided by.
        matryoshka_dimensions: Numbers of the prefixes that are trained beside the whole vectors, as "64,128"; empty = none.
    """

    passages_per_query: int
    temperature: float
    tune: Weights
    schedule: Schedule
    lora: Lora
    gradient_cache: int = 0
    mask_positives: bool = False
    sources: Literal["mixed", "homogeneous"] = "mixed"
    distillation_weight: float = 0.0
    distillation_temperature: float = 1.0
    matryoshka_dimensions: str = ""

    @property
    def prefixes(self) -> tuple[int, ...]:
        """`matryoshka_dimensions` as numbers, ascending."""
        return tuple(sorted({int(part) for part in self.matryoshka_dimensions.split(",") if part.strip()}))


@dataclass(frozen=True)
class Method:
    """A row of the table: a method's prompts, pooling and tuning.

    Attributes:
        query, passage: Prompts.
        pooling: A row of `llm_retriever.models.pooling`: `last` = last hidden state at the last token; `embedding` = mean over
            the embedding tokens; `text` = mean over the text (its second copy where there are two) and all that follows it.
        attention: `causal` or `bidirectional`.
        padding_side: Where the published code pads a batch; vectors do not depend on it, and here it is the right.
        normalise: Whether vectors have length 1; with the inner product as score this is cosine similarity.
        query_length, passage_length: Tokens, prompt and embedding tokens included.
        title_joiner: Between title and text; an empty title leaves the text alone.
    """

    name: str
    recipe: str
    query: PromptTemplate
    passage: PromptTemplate
    query_length: int
    passage_length: int
    tuning: ContrastiveRecipe
    pooling: str = "last"
    attention: Attention = "causal"
    padding_side: Literal["left", "right"] = "left"
    normalise: bool = True
    title_joiner: str = " "
