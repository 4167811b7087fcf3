"""The table of methods and their published recipes: data, not branches."""

from llm_retriever.methods.adaptation import ADAPTATIONS, EBAE_EBAR, MNTP, QUERY_LIKELIHOOD, SIMCSE, TUNED_FOR
from llm_retriever.methods.retrieval import METHODS, NEW_TOKENS, method, with_embedding, with_read_out
from llm_retriever.methods.types import (
    ALL_PROJECTIONS,
    AdaptationRecipe,
    ContrastiveRecipe,
    EbaeEbarRecipe,
    Lora,
    Method,
    MntpRecipe,
    PromptTemplate,
    QueryLikelihoodRecipe,
    Schedule,
    SimcseRecipe,
    overridden,
)

__all__ = [
    "ADAPTATIONS",
    "ALL_PROJECTIONS",
    "EBAE_EBAR",
    "METHODS",
    "MNTP",
    "NEW_TOKENS",
    "QUERY_LIKELIHOOD",
    "SIMCSE",
    "TUNED_FOR",
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
    "method",
    "overridden",
    "with_embedding",
    "with_read_out",
]
