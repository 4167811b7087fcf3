"""The table of stage-one recipes, by adaptation and by `paper`, `released` and `default`.

Sources: LLM-QL (Zhang et al., code Trustworthy-Information-Access/llm-ql); Llama2Vec (arXiv 2312.15503, code
FlagOpen/FlagEmbedding, research/LLARA/pretrain); LLM2Vec (arXiv 2404.05961, code McGill-NLP/llm2vec).
"""

from __future__ import annotations

from dataclasses import replace

from llm_retriever.methods.retrieval import method
from llm_retriever.methods.types import (
    AdaptationRecipe,
    EbaeEbarRecipe,
    Lora,
    MntpRecipe,
    PromptTemplate,
    QueryLikelihoodRecipe,
    Schedule,
    SimcseRecipe,
)

TUNED_FOR = {"ql": "llm-ql", "ebae_ebar": "llama2vec", "mntp": "llm2vec", "simcse": "llm2vec"}
"""The retrieval method whose prompts and embedding tokens an adaptation trains."""

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

ADAPTATIONS: dict[str, dict[str, AdaptationRecipe]] = {
    "ql": dict(QUERY_LIKELIHOOD),
    "ebae_ebar": dict(EBAE_EBAR),
    "mntp": dict(MNTP),
    "simcse": dict(SIMCSE),
}
