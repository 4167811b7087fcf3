"""The table of methods and their published recipes: data, not branches.

A retrieval method is how a text is worded and read out (`Method`) plus how the model is tuned (`ContrastiveRecipe`). A
stage-one adaptation is a recipe of its own (`QueryLikelihoodRecipe`). Each comes as `paper` (as printed), `released` (as
the authors' public code runs) and `default` (what this project runs where the two disagree).

Source: Zhang et al., *Unleashing the Power of LLMs in Dense Retrieval with Query Likelihood Modeling* (LLM-QL), and the
public code Trustworthy-Information-Access/llm-ql.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from llm_retriever.errors import InputError
from llm_retriever.settings import is_unset

Tokenisation = Literal["whole", "pieces"]

ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Wording:
    """How a text is put into a prompt.

    Attributes:
        prefix: What stands before the text, spaces included.
        suffix: What stands after the text and before the embedding tokens.
        tokenise: `whole` = the string at once; `pieces` = prefix, text and suffix each for itself, ids concatenated. The
            two give different ids under SentencePiece tokenizers, which start every piece with a space.
    """

    prefix: str
    suffix: str
    tokenise: Tokenisation = "whole"


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
        weight_decay: Of AdamW.
        gradient_checkpointing: Recompute activations in the backward pass.
    """

    epochs: float
    batch_size: int
    micro_batch_size: int
    learning_rate: float
    warmup: float
    max_steps: int = -1
    weight_decay: float = 0.0
    gradient_checkpointing: bool = True


@dataclass(frozen=True)
class QueryLikelihoodRecipe:
    """LLM-QL stage one: the passage, partly hidden, then [E], then the query that the model learns to generate.

    Attributes:
        document: Wording of the passage in front of [E]; always tokenised as a piece of its own.
        corruption_ratio: Probability that a unit of the passage is replaced by `_` (document corruption).
        corruption_unit: `word` (split on white space) or `token`.
        attention_block: Whether query tokens see the passage only through [E] (Eq. 6).
        loss_on: `query` = the query and its closing end-of-sequence token (Eq. 8); `all` = every token but pads.
        tune: `full` or `lora`.
        query_length: Tokens of the query part, its end-of-sequence token included.
        passage_length: Tokens of the document part, prompt included.
    """

    document: Wording
    corruption_ratio: float
    corruption_unit: Literal["word", "token"]
    attention_block: bool
    loss_on: Literal["query", "all"]
    tune: Literal["full", "lora"]
    query_length: int
    passage_length: int
    schedule: Schedule
    lora: Lora


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Stage two: in-batch and hard negatives, cosine similarity over a temperature (LLM-QL Eq. 12).

    Attributes:
        passages_per_query: The positive and `passages_per_query - 1` hard negatives (g).
        temperature: τ; 1 where the paper prints none.
    """

    passages_per_query: int
    temperature: float
    tune: Literal["full", "lora"]
    schedule: Schedule
    lora: Lora


@dataclass(frozen=True)
class Method:
    """A row of the table: how a method words its texts, reads out the vector, and is tuned.

    Attributes:
        query, passage: Wordings.
        embedding_tokens: Appended after the suffix, as ids; `eos` is the tokenizer's end-of-sequence token. The vector is
            read there.
        pooling: `last` = last hidden state at the last embedding token.
        attention: `causal` or `bidirectional`.
        padding_side: Where a batch is padded.
        normalise: Whether vectors have length 1; with the inner product as score this is cosine similarity.
        query_length, passage_length: Tokens, prompt and embedding tokens included.
        title_joiner: Between title and text; an empty title leaves the text alone.
    """

    name: str
    recipe: str
    query: Wording
    passage: Wording
    query_length: int
    passage_length: int
    tuning: ContrastiveRecipe
    embedding_tokens: tuple[str, ...] = ("eos",)
    pooling: Literal["last"] = "last"
    attention: Literal["causal", "bidirectional"] = "causal"
    padding_side: Literal["left", "right"] = "left"
    normalise: bool = True
    title_joiner: str = " "


_QL_RELEASED = QueryLikelihoodRecipe(
    document=Wording(
        "Instruct: Given a retrieved passage, summarize the passage.\nPassage: ", "\nSummarization: ", "pieces"
    ),
    corruption_ratio=0.6,
    corruption_unit="word",
    attention_block=True,
    loss_on="all",
    tune="full",
    query_length=200,
    passage_length=200,
    schedule=Schedule(epochs=2, batch_size=512, micro_batch_size=64, learning_rate=1e-5, warmup=0.1),
    lora=Lora(),
)
_QL_DEFAULT = replace(
    _QL_RELEASED,
    document=Wording(
        "Instruct: Given a retrieved passage, summarize the passage.\nPassage: ", "\nSummarization:", "pieces"
    ),
    loss_on="query",
)
_QL_PAPER = replace(
    _QL_RELEASED,
    document=Wording(
        "Instruct: Given a retrieved passage, summarize the passage. Passage: ", " Summarization:", "pieces"
    ),
    corruption_unit="token",
    loss_on="query",
)
QUERY_LIKELIHOOD: dict[str, QueryLikelihoodRecipe] = {
    "default": _QL_DEFAULT,
    "paper": _QL_PAPER,
    "released": _QL_RELEASED,
}

_LLM_QL = Method(
    name="llm-ql",
    recipe="default",
    query=Wording(
        "Instruct: Given a web search query, retrieve the most relevant passage that answer the query.\nQuery:  ",
        "\nThe most relevant passage:",
    ),
    passage=Wording("Instruct: Given a retrieved passage, summarize the passage.\nPassage:  ", "\nSummarization:"),
    query_length=64,
    passage_length=200,
    tuning=ContrastiveRecipe(
        passages_per_query=16,
        temperature=0.01,
        tune="lora",
        schedule=Schedule(epochs=1, batch_size=128, micro_batch_size=4, learning_rate=1e-4, warmup=100),
        lora=Lora(),
    ),
)
_LLM_QL_PAPER = replace(
    _LLM_QL,
    recipe="paper",
    query=Wording(
        "Instruct: Given a web search query, retrieve the most relevant passage that answers the query. Query: ",
        " The most relevant passage:",
    ),
    passage=Wording("Instruct: Given a retrieved passage, summarize the passage. Passage: ", " Summarization:"),
    tuning=replace(_LLM_QL.tuning, temperature=1.0),
)
METHODS: dict[str, dict[str, Method]] = {
    "llm-ql": {"default": _LLM_QL, "paper": _LLM_QL_PAPER, "released": replace(_LLM_QL, recipe="released")},
}


def method(name: str, recipe: str = "default") -> Method:
    """A row of the table.

    Raises:
        InputError: There is no such method or no such recipe of it.
    """
    if name not in METHODS:
        raise InputError(f"{name!r} is no method", field="method", mend=f"use one of {', '.join(METHODS)}")
    if recipe not in METHODS[name]:
        raise InputError(
            f"{name} has no recipe {recipe!r}", field="recipe", mend=f"use one of {', '.join(METHODS[name])}"
        )
    return METHODS[name][recipe]


Row = TypeVar("Row")


def overridden(row: Row, settings: Any) -> Row:
    """`row` (a recipe, schedule or adapter) with every field that `settings` sets.

    Nested dataclasses are overridden too; `lora_rank` of the settings is the field `rank` of a `Lora`. The switches `on`
    and `off` become booleans.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(row):  # type: ignore[arg-type]
        current = getattr(row, field.name)
        wanted = getattr(settings, f"lora_{field.name}" if isinstance(row, Lora) else field.name, -1)
        if isinstance(current, (Schedule, Lora, ContrastiveRecipe)):
            changes[field.name] = overridden(current, settings)
        elif not is_unset(wanted) and not dataclasses.is_dataclass(current):
            changes[field.name] = wanted == "on" if isinstance(current, bool) else wanted
    return replace(row, **changes)  # type: ignore[type-var]
