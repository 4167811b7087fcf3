"""What a row of the methods table consists of: prompts, read-out, recipes of both stages.

A retrieval method is how a text is worded and read out (`Method`) plus how the model is tuned (`ContrastiveRecipe`). Each
stage-one adaptation has a recipe of its own. The rows themselves are in `retrieval.py` (stage two) and `adaptation.py`
(stage one).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from llm_retriever.settings import is_unset

Tokenisation = Literal["whole", "pieces"]
Pooling = Literal["last", "embedding", "text"]
Attention = Literal["causal", "bidirectional"]
Weights = Literal["full", "lora"]

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PromptTemplate:
    """How a text is put into a prompt.

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
        """What stands before the text, as it is tokenised."""
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
    """How long, how fast and in which batches a model is trained.

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


@dataclass(frozen=True)
class QueryLikelihoodRecipe:
    """LLM-QL stage one: the passage, partly hidden, then [E], then the query that the model learns to generate.

    Attributes:
        document: Prompt of the passage in front of [E], the query part not included. [E] itself is that of the retrieval
            method that the model will be tuned for.
        corruption_ratio: Probability that a unit of the passage is replaced by `_` (document corruption).
        corruption_unit: `word` (split on white space) or `token`.
        attention_block: Whether query tokens see the passage only through [E] (Eq. 6).
        positives: `all` = each query and positive is an example of every epoch; `one` = each query, with a positive drawn anew.
        loss_on: `query` = the query and its closing end-of-sequence token (Eq. 8); `all` = every token but pads.
        tune: `full` or `lora`.
        query_length: Tokens of the query part, its end-of-sequence token included.
        passage_length: Tokens of the document part, prompt included.
    """

    document: PromptTemplate
    corruption_ratio: float
    corruption_unit: Literal["word", "token"]
    attention_block: bool
    positives: Literal["all", "one"]
    loss_on: Literal["query", "all"]
    tune: Weights
    query_length: int
    passage_length: int
    schedule: Schedule
    lora: Lora


@dataclass(frozen=True)
class EbaeEbarRecipe:
    """Llama2Vec: one text, then a prompt for itself (EBAE) and one for the following text (EBAR), invisible to each other.

    The prompts are those of the retrieval method `llama2vec`: its passage prompt asks for the text itself, its
    query prompt for the text that follows.

    Attributes:
        loss: `paper` = every target token at every embedding token, `-Σ log softmax(W h)` (Eq. 6); `released` = one
            distribution from the element-wise maximum over the embedding tokens, mean over the unique target ids.
        ar_weight: Weight of the ordinary next-token loss on the text itself; 0 = left out.
        bag_weight: Weight of the sum of the two bag-of-words losses.
        clean_targets: Whether stop words and punctuation are left out of the targets.
        passage_length: Tokens of the text, prompt not included.
        target_length: Tokens of a cleaned target, whatever the text is cut to; 0 = it is cut where the text is.
        new_tokens: Embeddings that added tokens start with: the mean of all others, or random ones as of an untrained model.
    """

    loss: Literal["paper", "released"]
    ar_weight: float
    bag_weight: float
    clean_targets: bool
    tune: Weights
    passage_length: int
    target_length: int
    new_tokens: Literal["mean", "random"]
    schedule: Schedule
    lora: Lora


@dataclass(frozen=True)
class MntpRecipe:
    """LLM2Vec, masked next-token prediction under bidirectional attention: token i is predicted at row i-1.

    Attributes:
        corruption_ratio: Probability that a token is to be predicted.
        masking: `bert` = of those 80 % become the mask, 10 % a random token, 10 % stay; `all` = all become the mask.
        mask_token: Text whose bare id is the mask.
        passage_length: Tokens of a block of concatenated text.
    """

    corruption_ratio: float
    masking: Literal["bert", "all"]
    mask_token: str
    tune: Weights
    passage_length: int
    schedule: Schedule
    lora: Lora


@dataclass(frozen=True)
class SimcseRecipe:
    """LLM2Vec, unsupervised SimCSE: a text's two vectors under different dropout are each other's positives.

    Attributes:
        dropout: Of the attention, in training only.
        temperature: τ.
        passage_length: Tokens of a text.
    """

    dropout: float
    temperature: float
    tune: Weights
    passage_length: int
    schedule: Schedule
    lora: Lora


AdaptationRecipe = QueryLikelihoodRecipe | EbaeEbarRecipe | MntpRecipe | SimcseRecipe


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
    """A row of the table: how a method words its texts, reads out the vector, and is tuned.

    Attributes:
        query, passage: Prompts.
        pooling: `last` = last hidden state at the last token; `embedding` = mean over the embedding tokens; `text` =
            mean over the text (its second copy where there are two) and all that follows it.
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
    pooling: Pooling = "last"
    attention: Attention = "causal"
    padding_side: Literal["left", "right"] = "left"
    normalise: bool = True
    title_joiner: str = " "


Row = TypeVar("Row")


def overridden(row: Row, settings: Any) -> Row:
    """`row` (a recipe, schedule or adapter) with every field that `settings` sets.

    Nested dataclasses are overridden too; `lora_rank` of the settings is the field `rank` of a `Lora`. The switches `on`
    and `off` become booleans. Where the settings say how many epochs, the recipe's number of updates counts no more.
    """
    changes: dict[str, Any] = {}
    if isinstance(row, Schedule) and not is_unset(getattr(settings, "epochs", -1)):
        changes |= {"max_steps": -1, "decay_epochs": 0.0}
    for field in dataclasses.fields(row):  # type: ignore[arg-type]
        current = getattr(row, field.name)
        wanted = getattr(settings, f"lora_{field.name}" if isinstance(row, Lora) else field.name, -1)
        if isinstance(current, (Schedule, Lora, ContrastiveRecipe)):
            changes[field.name] = overridden(current, settings)
        elif not is_unset(wanted) and not dataclasses.is_dataclass(current):
            changes[field.name] = wanted == "on" if isinstance(current, bool) else wanted
    return replace(row, **changes)  # type: ignore[type-var]
