"""Writes a retriever as a sentence-transformers directory, as far as that library can express a method.

It words a text as prompt + text + whatever the tokenizer's post-processor adds, so beginning-of-sequence token, suffix and
embedding tokens go into the post-processor, as ids, and survive any cut.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llm_retriever import files
from llm_retriever.encoders.retriever import Retriever, Side
from llm_retriever.errors import InputError
from llm_retriever.exporting.probes import SIDES, Source, check_same_ids, refusal
from llm_retriever.methods import PromptTemplate
from llm_retriever.models.batches import pad_id
from llm_retriever.models.card import RetrieverCard
from llm_retriever.models.pooling import POOLINGS
from llm_retriever.models.prompts import plain_ids

VERSION = "6.2"
"""The first release known to take lengths of queries and of documents; older ones have one length for both."""
NOTHING = "\ufeff"
"""A prompt of no tokens. Without any prompt, sentence-transformers takes the beginning-of-sequence token into a mean."""
_WAYS = ("together", "together and spaced", "apart", "apart and spaced")
"""How a tokenizer may treat prompt and text, to be tried in turn; the latter two give `tokenise: pieces`. Where a SentencePiece
tokenizer begins only the string, and not every piece, with a space, it has to be told to: `spaced`."""


def check_expressible(card: RetrieverCard) -> None:
    """Raises InputError with the reason, where sentence-transformers cannot express the card's prompts or pooling."""
    query, passage = card.query, card.passage
    if not POOLINGS[card.pooling].exported:
        raise refusal(f"sentence-transformers has no pooling like {card.pooling!r}")
    if query.between is not None or passage.between is not None:
        raise refusal("sentence-transformers cannot put a text in twice")
    if (query.suffix, query.embedding_tokens) != (passage.suffix, passage.embedding_tokens):
        raise refusal(
            "sentence-transformers can only end queries and passages alike, and here they end with "
            f"{_ending(query)} and {_ending(passage)}"
        )
    if card.pooling == "embedding" and len(query.embedding_tokens) > 1:
        raise refusal(f"sentence-transformers cannot average over {len(query.embedding_tokens)} embedding tokens alone")
    if card.pooling == "text" and (query.suffix or len(query.embedding_tokens) > 1):
        raise refusal("sentence-transformers cannot tell the text from a prompt that follows it")


def _ending(template: PromptTemplate) -> str:
    return repr(template.suffix + "".join(f"[{token}]" for token in template.embedding_tokens))


def worded(source: Source) -> tuple[PreTrainedTokenizerFast, dict[Side, str]]:
    """Finds a tokenizer and the prompts with which the probes become the retriever's ids.

    Raises:
        InputError: There are none.
    """
    prompts = {side: _prompt(source.retriever, side) for side in SIDES}
    pieces = "pieces" in (source.retriever.card.query.tokenise, source.retriever.card.passage.tokenise)
    *others, last = _WAYS if pieces else _WAYS[:2]
    for way in others:
        with contextlib.suppress(InputError):
            return _checked(source, prompts, way), prompts
    return _checked(source, prompts, last), prompts


def _prompt(retriever: Retriever, side: Side) -> str:
    prefix = "".join(getattr(retriever.card, side).prefix_pieces)
    counted = retriever.card.pooling == "text" and retriever.prompt(side).opening
    return prefix or (NOTHING if counted else "")


def _checked(source: Source, prompts: dict[Side, str], way: str) -> PreTrainedTokenizerFast:
    tokenizer = _tokenizer(source.retriever, prompts, way)
    for side in SIDES:
        texts = [prompts[side] + text.strip() for text in source.texts[side]]
        length = source.retriever.prompt(side).length
        check_same_ids(source, side, tokenizer(texts, truncation=True, max_length=length)["input_ids"])
    return tokenizer


def _tokenizer(retriever: Retriever, prompts: dict[Side, str], way: str) -> PreTrainedTokenizerFast:
    """Returns the retriever's tokenizer with the prompt's end built in; names of special tokens stay text."""
    original, card = retriever.tokenizer, retriever.card
    backend = Tokenizer.from_str(original.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    prefixes = [prompt for prompt in prompts.values() if prompt not in ("", NOTHING)]
    if way != "together":
        _isolate(backend, prefixes if way.startswith("apart") else [], spaced=way.endswith("spaced"))
    if card.pooling == "text" and card.query.tokenise == "whole":
        # How long a prompt is, is counted on the prompt alone, whose last space is the text's.
        ended = normalizers.Replace(Regex(r"\s+\z"), "")
        backend.normalizer = normalizers.Sequence([ended, *([backend.normalizer] if backend.normalizer else [])])
    if NOTHING in prompts.values():
        removed = normalizers.Replace(Regex(rf"\A{NOTHING}"), "")
        kept = [backend.normalizer] if backend.normalizer is not None else []
        backend.normalizer = normalizers.Sequence([removed, *kept])
    backend.post_processor = _around(original, retriever.prompt("query").opening, tail_ids(retriever))
    # With a name, the beginning-of-sequence token would be taken for the end of a prompt that has no other tokens.
    bos = {} if NOTHING in prompts.values() else {"bos_token": original.bos_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **bos,
        eos_token=original.eos_token,
        unk_token=original.unk_token,
        pad_token=original.convert_ids_to_tokens(pad_id(original)),
        padding_side="right",  # Some models count positions from the first column, pads among them.
        model_max_length=card.passage_length,
        split_special_tokens=True,
    )


def _isolate(backend: Tokenizer, prefixes: list[str], *, spaced: bool) -> None:
    """Makes the tokenizer treat some prompts as pieces of their own, and begin every piece with ▁ where `spaced`."""
    if backend.normalizer is not None:
        prefixes = [backend.normalizer.normalize_str(prefix) for prefix in prefixes]
    longest_first = sorted(set(prefixes), key=len, reverse=True)
    pattern = Regex(rf"\A(?:{'|'.join(map(re.escape, longest_first))})")
    steps: list[Any] = [pre_tokenizers.Split(pattern, "isolated")] if prefixes else []
    steps += [backend.pre_tokenizer] if backend.pre_tokenizer is not None else []
    steps += [pre_tokenizers.Metaspace(prepend_scheme="always", split=False)] if spaced else []
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def tail_ids(retriever: Retriever) -> list[int]:
    """Ids of what follows a text: its suffix, as it is tokenised after a text, and the embedding tokens."""
    template, tokenizer = retriever.card.passage, retriever.tokenizer
    before = "".join(template.prefix_pieces) + "river" if template.tokenise == "whole" else ""
    head, whole = plain_ids(tokenizer, [before, before + template.suffix])
    return [*whole[len(head) :], *retriever.prompt("passage").closing]


def _around(tokenizer: Any, opening: list[int], tail: list[int]) -> processors.TemplateProcessing:
    """Returns a post-processor that puts ids before and after every text."""
    parts = {name: ids for name, ids in (("opening", opening), ("tail", tail)) if ids}
    special = [{"id": name, "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)} for name, ids in parts.items()]
    template = [name for name in ("opening", "$A", "tail") if name == "$A" or name in parts]
    return processors.TemplateProcessing(single=" ".join(template), special_tokens=special)


def write(source: Source, tokenizer: PreTrainedTokenizerFast, prompts: dict[Side, str], directory: Path) -> None:
    """Writes model, tokenizer and the four configurations of sentence-transformers into an empty directory."""
    source.retriever.model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _name_class(directory / "tokenizer_config.json")
    card, package = source.retriever.card, "sentence_transformers"
    modules = [
        ("", f"{package}.base.modules.transformer.Transformer"),
        ("1_Pooling", f"{package}.sentence_transformer.modules.pooling.Pooling"),
        ("2_Normalize", f"{package}.base.modules.normalize.Normalize"),
    ][: 3 if card.normalise else 2]
    rows = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    files.write_json(directory / "modules.json", rows)
    files.write_json(directory / "sentence_bert_config.json", _transformer(card))
    files.write_json(directory / "1_Pooling" / "config.json", _pooling(card, source.retriever.dimension))
    if card.normalise:
        files.write_json(directory / "2_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})
    files.write_json(directory / "config_sentence_transformers.json", _prompts(card, prompts))


def _transformer(card: RetrieverCard) -> dict[str, Any]:
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "max_seq_length": card.passage_length,
        "query_length": card.query_length,
        "document_length": card.passage_length,
    }


def _pooling(card: RetrieverCard, dimension: int) -> dict[str, Any]:
    row = POOLINGS[card.pooling]
    return {"embedding_dimension": dimension, "pooling_mode": row.exported, "include_prompt": row.reads != "text"}


def _prompts(card: RetrieverCard, prompts: dict[Side, str]) -> dict[str, Any]:
    named = {"query": prompts["query"], "document": prompts["passage"], "passage": prompts["passage"]}
    return {
        "model_type": "SentenceTransformer",
        "prompts": named,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine" if card.normalise else "dot",
    }


def _name_class(path: Path) -> None:
    """Names the class that reads tokenizer.json as it stands; every release of transformers knows this one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    files.write_json(path, {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
