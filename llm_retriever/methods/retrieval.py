"""The table of retrieval methods: prompt, read-out and tuning of each, as published and as this project runs them.

Each comes as `paper` (as printed), `released` (as the authors' public code runs) and `default` (what this project runs
where the two disagree, and what the methods are compared with on equal terms).

Sources: LLM-QL (Zhang et al., code Trustworthy-Information-Access/llm-ql); Llama2Vec (arXiv 2312.15503, code
FlagOpen/FlagEmbedding, research/LLARA); LLM2Vec (arXiv 2404.05961, code McGill-NLP/llm2vec); RepLLaMA (Ma et al., SIGIR
2024, code texttron/tevatron); Echo (arXiv 2402.15449, code jakespringer/echo-embeddings); Summarize (PromptEOL, arXiv
2307.16645, code kongds/scaling_sentemb).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from llm_retriever.errors import InputError
from llm_retriever.methods.types import ALL_PROJECTIONS, ContrastiveRecipe, Lora, Method, PromptTemplate, Schedule

ReadOut = Literal["", "n2s", "s2s", "n2n"]
EmbeddingVariant = Literal["", "eos", "eos4", "new4"]
NEW_TOKENS = tuple(f"<s{number}>" for number in range(1, 17))
"""Tokens that a stage-one adaptation adds to the vocabulary: eight for the text itself, eight for what follows it."""

_SHARED = ContrastiveRecipe(
    passages_per_query=16,
    temperature=0.01,
    tune="lora",
    schedule=Schedule(epochs=1, batch_size=128, micro_batch_size=4, learning_rate=1e-4, warmup=100),
    lora=Lora(),
)
_AS_DEEPSPEED = replace(_SHARED.schedule, warmup_shape="logarithmic")

_LLM_QL = Method(
    name="llm-ql",
    recipe="default",
    query=PromptTemplate(
        "Instruct: Given a web search query, retrieve the most relevant passage that answer the query.\nQuery:  ",
        "\nThe most relevant passage:",
    ),
    passage=PromptTemplate(
        "Instruct: Given a retrieved passage, summarize the passage.\nPassage:  ", "\nSummarization:"
    ),
    query_length=64,
    passage_length=200,
    tuning=_SHARED,
)
_LLM_QL_RELEASED = replace(_LLM_QL, tuning=replace(_SHARED, schedule=_AS_DEEPSPEED))
_LLM_QL_PAPER = replace(
    _LLM_QL,
    query=PromptTemplate(
        "Instruct: Given a web search query, retrieve the most relevant passage that answers the query. Query: ",
        " The most relevant passage:",
    ),
    passage=PromptTemplate("Instruct: Given a retrieved passage, summarize the passage. Passage: ", " Summarization:"),
    tuning=replace(_SHARED, temperature=1.0),
)

_LLAMA2VEC = Method(
    name="llama2vec",
    recipe="default",
    query=PromptTemplate('"', '", predict the following passage within eight words: ', "pieces", NEW_TOKENS[8:]),
    passage=PromptTemplate('"', '", summarize the above passage within eight words: ', "pieces", NEW_TOKENS[:8]),
    query_length=64,
    passage_length=200,
    pooling="embedding",
    tuning=_SHARED,
)
_LLAMA2VEC_RELEASED = replace(
    _LLAMA2VEC,
    passage_length=160,
    tuning=replace(
        _SHARED,
        schedule=replace(_AS_DEEPSPEED, batch_size=8, micro_batch_size=8, learning_rate=3e-4, warmup=0.1),
        lora=Lora(rank=64, alpha=16, dropout=0.1),
    ),
)
_LLAMA2VEC_PAPER = replace(
    _LLAMA2VEC,
    query=PromptTemplate("", " The next sentence is:", "pieces"),
    passage=PromptTemplate("", " The input sentence is:", "pieces"),
    pooling="last",
)

_LLM2VEC_QUERY = "Given a web search query, retrieve relevant passages that answer the query: "
_LLM2VEC = Method(
    name="llm2vec",
    recipe="default",
    query=PromptTemplate(_LLM2VEC_QUERY, "", "whole", ()),
    passage=PromptTemplate("Passage: ", "", "whole", ()),
    query_length=64,
    passage_length=200,
    attention="bidirectional",
    tuning=_SHARED,
)
_LLM2VEC_PAPER = replace(
    _LLM2VEC,
    query=PromptTemplate(_LLM2VEC_QUERY, "", "whole", ()),
    passage=PromptTemplate("", "", "whole", ()),
    query_length=512,
    passage_length=512,
    pooling="text",
    tuning=ContrastiveRecipe(
        passages_per_query=2,
        temperature=0.02,
        tune="lora",
        schedule=Schedule(
            epochs=1, max_steps=1000, batch_size=512, micro_batch_size=64, learning_rate=2e-4, warmup=300
        ),
        lora=Lora(rank=16, alpha=32, dropout=0.05),
        sources="homogeneous",
    ),
)
_LLM2VEC_RELEASED = replace(
    _LLM2VEC_PAPER,
    tuning=replace(_LLM2VEC_PAPER.tuning, schedule=replace(_LLM2VEC_PAPER.tuning.schedule, decay_epochs=3)),
)

_REPLLAMA = Method(
    name="repllama",
    recipe="default",
    query=PromptTemplate("query: ", ""),
    passage=PromptTemplate("passage: ", ""),
    query_length=32,
    passage_length=196,
    padding_side="right",
    tuning=_SHARED,
)
_WITHOUT_K = tuple(name for name in ALL_PROJECTIONS if name != "k_proj")

_ECHO = Method(
    name="echo",
    recipe="default",
    query=PromptTemplate(
        "Instruct: Given a web search query, retrieve relevant passages that answer the query. Query: ",
        "",
        "pieces",
        (),
        between=" Query again: ",
    ),
    passage=PromptTemplate("Document: ", "", "pieces", (), between=" Document again: "),
    query_length=128,
    passage_length=400,
    padding_side="right",
    tuning=_SHARED,
)
_ECHO_RELEASED = replace(
    _ECHO,
    query=PromptTemplate(
        ("Instruct:", "Given a web search query, retrieve relevant passages that answer the query,", "\nQuery:"),
        "",
        "pieces",
        between="\nQuery again:",
    ),
    passage=PromptTemplate("Document:", "", "pieces", between="\nDocument again:"),
    query_length=629,  # 300 tokens a copy, as Llama-2 tokenises the prompts
    passage_length=609,
)

_SUMMARIZE = Method(
    name="summarize",
    recipe="default",
    query=PromptTemplate("This sentence: ", ' means in one word:"', "whole", ()),
    passage=PromptTemplate("This sentence: ", ' means in one word:"', "whole", ()),
    query_length=64,
    passage_length=200,
    tuning=_SHARED,
)
_SUMMARIZE_PAPER = replace(
    _SUMMARIZE,
    query=PromptTemplate('This sentence : "', '" means in one word:"', "whole", ()),
    passage=PromptTemplate('This sentence : "', '" means in one word:"', "whole", ()),
    query_length=43,  # 32 of the text, as Llama tokenises the prompt
    passage_length=43,
    tuning=ContrastiveRecipe(
        passages_per_query=2,
        temperature=0.05,
        tune="lora",
        schedule=Schedule(epochs=1, batch_size=256, micro_batch_size=64, learning_rate=5e-4, warmup=100),
        lora=Lora(rank=64, alpha=16, dropout=0.05),
    ),
)


def _recipes(default: Method, paper: Method, released: Method) -> dict[str, Method]:
    tuning = replace(default.tuning, mask_positives=True)
    return {
        "default": replace(default, tuning=tuning),
        "paper": replace(paper, recipe="paper"),
        "released": replace(released, recipe="released"),
    }


METHODS: dict[str, dict[str, Method]] = {
    "llm-ql": _recipes(_LLM_QL, _LLM_QL_PAPER, _LLM_QL_RELEASED),
    "llama2vec": _recipes(_LLAMA2VEC, _LLAMA2VEC_PAPER, _LLAMA2VEC_RELEASED),
    "llm2vec": _recipes(_LLM2VEC, _LLM2VEC_PAPER, _LLM2VEC_RELEASED),
    "repllama": _recipes(
        _REPLLAMA,
        replace(
            _REPLLAMA,
            query_length=31,  # v1 leaves one of its 32 and 196 tokens unused
            passage_length=195,
            tuning=replace(_SHARED, schedule=_AS_DEEPSPEED, lora=Lora(targets=_WITHOUT_K)),
        ),
        replace(
            _REPLLAMA,
            query=PromptTemplate("Query: ", ""),
            passage=PromptTemplate("Passage: ", ""),
            passage_length=156,
            tuning=replace(_SHARED, schedule=replace(_AS_DEEPSPEED, warmup=0.1), lora=Lora(rank=16)),
        ),
    ),
    "echo": _recipes(_ECHO, replace(_ECHO_RELEASED, pooling="text"), _ECHO_RELEASED),
    "summarize": _recipes(_SUMMARIZE, _SUMMARIZE_PAPER, _SUMMARIZE_PAPER),
}


def method(name: str, recipe: str = "default") -> Method:
    """Returns a row of the table.

    Raises:
        InputError: There is no such method or no such recipe of it.
    """
    if name not in METHODS:
        raise InputError(f"{name!r} is no method", field="method", hint=f"use one of {', '.join(METHODS)}")
    if recipe not in METHODS[name]:
        raise InputError(
            f"{name} has no recipe {recipe!r}", field="recipe", hint=f"use one of {', '.join(METHODS[name])}"
        )
    return METHODS[name][recipe]


def with_embedding(row: Method, variant: EmbeddingVariant) -> Method:
    """Returns the row read out at other embedding tokens (LLM-QL, Table 7); "" leaves it as it is.

    `eos` = one end-of-sequence token, `eos4` = four of them, `new4` = four tokens that stage one adds to the vocabulary;
    the vectors at several tokens are averaged.
    """
    if not variant:
        return row
    tokens = {"eos": ("eos",), "eos4": ("eos",) * 4, "new4": NEW_TOKENS[:4]}[variant]
    query, passage = (replace(template, embedding_tokens=tokens) for template in (row.query, row.passage))
    return replace(row, query=query, passage=passage, pooling="last" if len(tokens) == 1 else "embedding")


def with_read_out(row: Method, read_out: ReadOut) -> Method:
    """Returns the row with other prompts for queries and passages; "" leaves it as it is.

    `n2s` = queries ask for the next text, passages for themselves (Llama2Vec's own); `s2s` and `n2n` treat both alike.
    """
    if read_out in ("", "n2s"):
        return row
    template = row.passage if read_out == "s2s" else row.query
    return replace(row, query=template, passage=template)
