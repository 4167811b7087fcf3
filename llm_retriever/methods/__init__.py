"""The table of methods and their published recipes: data, not branches."""

from llm_retriever.methods.adaptation import (
    ADAPTATIONS,
    EBAE_EBAR,
    MNTP,
    QUERY_LIKELIHOOD,
    SEQUENCES,
    SIMCSE,
    EbaeEbarRecipe,
    MntpRecipe,
    QueryLikelihoodRecipe,
    SimcseRecipe,
    descriptor,
)
from llm_retriever.methods.overrides import is_unset, overridden
from llm_retriever.methods.retrieval import METHODS, NEW_TOKENS, method, with_embedding, with_read_out
from llm_retriever.methods.types import (
    ALL_PROJECTIONS,
    AdaptationRecipe,
    ContrastiveRecipe,
    Lora,
    Method,
    PromptTemplate,
    Schedule,
)

__all__ = [
    "ADAPTATIONS",
    "ALL_PROJECTIONS",
    "EBAE_EBAR",
    "METHODS",
    "MNTP",
    "NEW_TOKENS",
    "QUERY_LIKELIHOOD",
    "SEQUENCES",
    "SIMCSE",
    "AdaptationRecipe",
    "ContrastiveRecipe",
    "EbaeEbarRecipe",
    "Lora",
    "Method",
    "MntpRecipe",
    "PromptTemplate",
    "QueryLikelihoodRecipe",
    "Schedule",
    "SimcseRecipe",
    "descriptor",
    "is_unset",
    "method",
    "overridden",
    "with_embedding",
    "with_read_out",
]
