"""The table of stage-one objectives: the recipe class of each is its descriptor; recipes are `paper`, `released`, `default`.

Sources: LLM-QL (Zhang et al., code Trustworthy-Information-Access/llm-ql); Llama2Vec (arXiv 2312.15503, code
FlagOpen/FlagEmbedding, research/LLARA/pretrain); LLM2Vec (arXiv 2404.05961, code McGill-NLP/llm2vec).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from llm_retriever.methods.retrieval import method
from llm_retriever.methods.types import AdaptationRecipe, Lora, Method, PromptTemplate, Rows, Schedule, Workload

_OF_LLM2VEC = "mntp and simcse = LLM2Vec's masked next-token prediction and unsupervised contrast"


@dataclass(frozen=True, kw_only=True)
class QueryLikelihoodRecipe(AdaptationRecipe):
    """LLM-QL stage one: the passage, partly hidden, then [E], then the query that the model learns to generate.

    Attributes:
        document: Prompt of the passage in front of [E], the query part not included. [E] itself is that of the retrieval
            method that the model will be tuned for.
        corruption_ratio: Probability that a unit of the passage is replaced by `_` (document corruption).
        corruption_unit: `word` (split on white space) or `token`.
        attention_block: Whether query tokens see the passage only through [E] (Eq. 6).
        positives: `all` = each query and positive is an example of every epoch; `one` = each query, with a positive drawn anew.
        loss_on: `query` = the query and its closing end-of-sequence token (Eq. 8); `all` = every token but pads.
        query_length: Tokens of the query part, its end-of-sequence token included.
    """

    module = "query_likelihood"
    help = "ql = LLM-QL query-likelihood modelling"
    length = "tokens of the document part, prompt included (the embedding tokens and the query part follow)"
    tuned_for = "llm-ql"
    reads_embedding = True
    order = "by length"

    document: PromptTemplate
    corruption_ratio: float
    corruption_unit: Literal["word", "token"]
    attention_block: bool
    positives: Literal["all", "one"]
    loss_on: Literal["query", "all"]
    query_length: int

    def parts(self, method: Method, opening: int, tokens: Callable[[str], int]) -> dict[str, int]:
        """Passage, [E] and query follow each other."""
        embedding = len(method.passage.embedding_tokens)
        return {"passage_length": self.passage_length, "embedding tokens": embedding, "query": self.query_length}

    def rows(self, work: Workload) -> Rows:
        """One for each training query."""
        passage, query = work.passage(self.passage_length), work.query(self.query_length)
        return Rows(passage + query, query if self.loss_on == "query" else passage + query, work.queries)


@dataclass(frozen=True, kw_only=True)
class EbaeEbarRecipe(AdaptationRecipe):
    """Llama2Vec: one text, then a prompt for itself (EBAE) and one for the following text (EBAR), invisible to each other.

    The prompts are those of the retrieval method `llama2vec`: its passage prompt asks for the text itself, its
    query prompt for the text that follows.

    Attributes:
        loss: `paper` = every target token at every embedding token, `-Σ log softmax(W h)` (Eq. 6); `released` = one
            distribution from the element-wise maximum over the embedding tokens, mean over the unique target ids.
        ar_weight: Weight of the ordinary next-token loss on the text itself; 0 = left out.
        bag_weight: Weight of the sum of the two bag-of-words losses.
        clean_targets: Whether stop words and punctuation are left out of the targets.
        target_length: Tokens of a cleaned target, whatever the text is cut to; 0 = it is cut where the text is.
        new_tokens: Embeddings that added tokens start with: the mean of all others, or random ones as of an untrained model.
    """

    module = "ebae_ebar"
    help = "ebae_ebar = Llama2Vec"
    length = "tokens of the text, its two prompts not included"
    tuned_for = "llama2vec"
    reads_embedding = True
    order = "by length"

    loss: Literal["paper", "released"]
    ar_weight: float
    bag_weight: float
    clean_targets: bool
    target_length: int
    new_tokens: Literal["mean", "random"]

    def parts(self, method: Method, opening: int, tokens: Callable[[str], int]) -> dict[str, int]:
        """The two prompts share their positions, so the longer one counts."""
        head = opening + sum(map(tokens, method.passage.prefix_pieces))
        prompts = [tokens(w.suffix) + len(w.embedding_tokens) for w in (method.passage, method.query)]
        return {"passage_length": self.passage_length, "head": head, "prompt": max(prompts)}

    def rows(self, work: Workload) -> Rows:
        """The text and 40 tokens of prompts; logits at 16 embedding tokens, and on the text where it is predicted too."""
        passage = work.passage(self.passage_length)
        return Rows(passage + 40, 16 + (passage if self.ar_weight else 0), work.passages)


@dataclass(frozen=True, kw_only=True)
class MntpRecipe(AdaptationRecipe):
    """LLM2Vec, masked next-token prediction under bidirectional attention: token i is predicted at row i-1.

    Attributes:
        corruption_ratio: Probability that a token is to be predicted.
        masking: `bert` = of those 80 % become the mask, 10 % a random token, 10 % stay; `all` = all become the mask.
        mask_token: Text whose bare id is the mask.
    """

    module = "mntp"
    help = _OF_LLM2VEC
    length = "tokens of a block of concatenated passages"
    tuned_for = "llm2vec"
    order = "as it is"

    corruption_ratio: float
    masking: Literal["bert", "all"]
    mask_token: str

    def rows(self, work: Workload) -> Rows:
        """Blocks of all passages together."""
        length = self.passage_length
        return Rows(length, self.corruption_ratio * length, work.passages * (work.passage_tokens or length) / length)


@dataclass(frozen=True, kw_only=True)
class SimcseRecipe(AdaptationRecipe):
    """LLM2Vec, unsupervised SimCSE: a text's two vectors under different dropout are each other's positives.

    Attributes:
        dropout: Of the attention, in training only.
        temperature: τ.
    """

    module = "simcse"
    help = _OF_LLM2VEC
    length = "tokens of a passage, prompt included"
    tuned_for = "llm2vec"
    order = "whole"
    views = 2

    dropout: float
    temperature: float

    def rows(self, work: Workload) -> Rows:
        """Both views of a passage; no logits."""
        return Rows(2 * work.passage(self.passage_length), 0, work.passages)


_QL_RELEASED = QueryLikelihoodRecipe(
    document=PromptTemplate(
        "Instruct: Given a retrieved passage, summarize the passage.\nPassage: ", "\nSummarization: "
    ),
    corruption_ratio=0.6,
    corruption_unit="word",
    attention_block=True,
    positives="one",
    loss_on="all",
    tune="full",
    query_length=200,
    passage_length=200,
    schedule=Schedule(
        epochs=2, batch_size=512, micro_batch_size=64, learning_rate=1e-5, warmup=0.1, warmup_shape="logarithmic"
    ),
    lora=Lora(),
)
_QL_DEFAULT = replace(
    _QL_RELEASED,
    positives="all",
    schedule=replace(_QL_RELEASED.schedule, warmup_shape="linear"),
    document=method("llm-ql", "default").passage,  # the ids of stage two
    loss_on="query",
)
_QL_PAPER = replace(
    _QL_DEFAULT,
    document=method("llm-ql", "paper").passage,
    corruption_unit="token",
    loss_on="query",
)
QUERY_LIKELIHOOD: dict[str, QueryLikelihoodRecipe] = {
    "default": _QL_DEFAULT,
    "paper": _QL_PAPER,
    "released": _QL_RELEASED,
}

_EBAE_RELEASED = EbaeEbarRecipe(
    loss="released",
    ar_weight=1.0,
    bag_weight=0.05,  # each branch is divided by 10, and their sum halved
    clean_targets=True,
    tune="full",
    passage_length=89,  # 128 with both prompts, as Llama-2 tokenises them
    target_length=127,  # 128 with the beginning of sequence
    new_tokens="random",
    schedule=Schedule(
        epochs=1, batch_size=8, micro_batch_size=1, learning_rate=1e-5, warmup=0.1, warmup_shape="logarithmic"
    ),
    lora=Lora(rank=64, alpha=16),
)
_EBAE_DEFAULT = replace(
    _EBAE_RELEASED,
    passage_length=256,
    target_length=0,
    new_tokens="mean",
    schedule=Schedule(epochs=1, batch_size=256, micro_batch_size=8, learning_rate=1e-5, warmup=0.1),
)
EBAE_EBAR: dict[str, EbaeEbarRecipe] = {
    "default": _EBAE_DEFAULT,
    "paper": replace(
        _EBAE_DEFAULT,
        loss="paper",
        ar_weight=0.0,
        bag_weight=1.0,
        clean_targets=False,
        passage_length=1024,
        schedule=replace(_EBAE_DEFAULT.schedule, max_steps=10_000),
    ),
    "released": _EBAE_RELEASED,
}

_MNTP = MntpRecipe(
    corruption_ratio=0.2,
    masking="bert",
    mask_token="_",  # noqa: S106 - a token of a vocabulary
    tune="lora",
    passage_length=512,
    schedule=Schedule(epochs=1, max_steps=1000, batch_size=32, micro_batch_size=32, learning_rate=5e-5, warmup=0.0),
    lora=Lora(rank=16, alpha=32, dropout=0.05),
)
MNTP: dict[str, MntpRecipe] = {
    "default": _MNTP,
    "paper": _MNTP,
    "released": replace(_MNTP, schedule=replace(_MNTP.schedule, decay_epochs=3)),
}

_SIMCSE = SimcseRecipe(
    dropout=0.3,
    temperature=0.05,
    tune="lora",
    passage_length=128,
    schedule=Schedule(epochs=1, max_steps=1000, batch_size=128, micro_batch_size=128, learning_rate=3e-5, warmup=0.0),
    lora=Lora(rank=16, alpha=32, dropout=0.05),
)
SIMCSE: dict[str, SimcseRecipe] = {
    "default": _SIMCSE,
    "paper": _SIMCSE,
    "released": replace(_SIMCSE, schedule=replace(_SIMCSE.schedule, decay_epochs=3)),
}

ADAPTATIONS: dict[str, Mapping[str, AdaptationRecipe]] = {
    "ql": QUERY_LIKELIHOOD,
    "ebae_ebar": EBAE_EBAR,
    "mntp": MNTP,
    "simcse": SIMCSE,
}
"""The stage-one objectives, as the setting `method` names them."""
SEQUENCES = ("mntp+simcse",)
"""Objectives that may be trained one after the other."""


def descriptor(name: str) -> type[AdaptationRecipe]:
    """Returns the descriptor of an objective."""
    return type(ADAPTATIONS[name]["default"])
