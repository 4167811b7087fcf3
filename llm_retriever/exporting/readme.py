"""Writes the README.md of an export: a few lines of code that give the retriever's vectors, and what to mind."""

from __future__ import annotations

import json
from pathlib import Path

from llm_retriever import files
from llm_retriever.exporting.probes import refusal
from llm_retriever.exporting.sentences import VERSION
from llm_retriever.methods import PromptTemplate
from llm_retriever.models.card import RetrieverCard

FILE = "README.md"

_MERGED = """\
import json
import torch
from transformers import AutoModel, AutoTokenizer

path = "."  # this directory
card = json.load(open(f"{path}/retriever_card.json", encoding="utf-8"))
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModel.from_pretrained(path, dtype="auto").eval()


def plain(text):  # names of special tokens in a text are text
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode(text, side):  # side: "query" or "passage"
    wording, text = card[side], text.strip()
    opening = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    names = [tokenizer.eos_token if name == "eos" else name for name in wording["embedding_tokens"]]
    closing = tokenizer.convert_tokens_to_ids(names)
IDS
READ_OUT
"""

_WHOLE = """\
    row = plain(wording["prefix"] + text + wording["suffix"])
    while len(opening + row + closing) > card[f"{side}_length"]:  # cut the text alone, never what is around it
        text = text[:-1].rstrip()
        row = plain(wording["prefix"] + text + wording["suffix"])
    row = opening + row + closing"""
_PIECES = """\
    head, tail = opening + plain(wording["prefix"]), plain(wording["suffix"]) + closing
    body = plain(text)[: card[f"{side}_length"] - len(head + tail)]  # cut the text alone, never what is around it
    row = head + body + tail"""
_TWICE = """\
    pieces = [wording["prefix"]] if isinstance(wording["prefix"], str) else wording["prefix"]
    head, tail = opening + sum(map(plain, pieces), []), plain(wording["suffix"]) + closing
    between = plain(wording["between"])
    body = plain(text)[: (card[f"{side}_length"] - len(head + between + tail)) // 2]  # both copies are cut alike
    row = head + body + between + body + tail"""
_COUNTS = {
    "last": "1  # the vector is the last token's",
    "embedding": "len(closing)  # the vector is the mean over the embedding tokens",
    "text": "max(1, len(body + tail))  # the vector is the mean over the text and what follows it",
    "text in whole": 'max(1, len(row) - len(opening + plain(wording["prefix"].rstrip())))  # all but the prompt before the text',
}


def write_merged(card: RetrieverCard, directory: Path) -> None:
    """Writes the README.md of a merged export."""
    code = _MERGED.replace("READ_OUT", _read_out(card)).replace("IDS", _ids(card))
    text = f"""# {card.method}: a dense retriever

An encoder without head, its tokenizer, and `retriever_card.json`, which says how texts are worded, cut and read out. The
vectors come out of these lines:

```python
{code}```

A passage with a title is `title + {json.dumps(card.title_joiner)} + text`; without one, the text alone. {_score(card)}
{_attention(card)}

With llm-retriever: `Retriever.on_backbone(path, RetrieverCard.load(path))`.
"""
    files.write_text(directory / FILE, text)


def _ids(card: RetrieverCard) -> str:
    if card.query.between is not None:
        return _TWICE
    if card.query.tokenise == card.passage.tokenise:
        return _ids_of(card.query)
    indented = [_ids_of(template).replace("\n", "\n    ") for template in (card.query, card.passage)]
    return f'    if side == "query":\n    {indented[0]}\n    else:\n    {indented[1]}'


def _ids_of(template: PromptTemplate) -> str:
    return _WHOLE if template.tokenise == "whole" else _PIECES


def _read_out(card: RetrieverCard) -> str:
    vector = "torch.nn.functional.normalize(vector, dim=0)" if card.normalise else "vector"
    counted = f"{card.pooling} in whole" if card.pooling == "text" and card.query.tokenise == "whole" else card.pooling
    if counted not in _COUNTS:
        raise refusal(f"there are no lines of code for the pooling {card.pooling!r}")
    return f"""\
    count = {_COUNTS[counted]}
    with torch.inference_mode():
        hidden = model(input_ids=torch.tensor([row])).last_hidden_state[0]
    vector = hidden[-count:].float().mean(dim=0)
    return {vector}"""


def _score(card: RetrieverCard) -> str:
    return "The score of a query and a passage is the inner product" + (
        ", which is the cosine: vectors have length 1." if card.normalise else " of their vectors."
    )


def _attention(card: RetrieverCard) -> str:
    if card.attention == "causal":
        return ""
    return (
        "\nThe model is **bidirectional**: `config.json` says `is_causal: false`, which transformers 5 obeys. Programs that "
        "do not, older releases among them, would silently read it as a causal model and give other vectors.\n"
    )


def write_sentences(card: RetrieverCard, directory: Path) -> None:
    """Writes the README.md of a sentence-transformers export."""
    joiner = json.dumps(card.title_joiner)
    text = f"""# {card.method}: a dense retriever for sentence-transformers

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
queries = model.encode_query(["how old is the bridge"])
passages = model.encode_document(["Old bridge" + {joiner} + "Built in 1302."])  # title and text, or the text alone
scores = model.similarity(queries, passages)
```

- Use sentence-transformers {VERSION} or later, and `encode_query` and `encode_document`: they cut queries at
  {card.query_length} tokens and passages at {card.passage_length}, everything included. `encode(…, prompt_name="query")` words a
  query alike but cuts it at {card.passage_length}, and `encode` without a prompt gives vectors of another space.
- Strip white space around texts: it becomes part of the text here. Where a cut falls on white space or within a character,
  a token more or less than in llm-retriever may be left of the text.
- Everything around a text is in `config_sentence_transformers.json` (before it) and `tokenizer.json` (its beginning and
  end). The tokenizer puts them around every text, so do not use it for another purpose.
{_attention(card)}"""
    files.write_text(directory / FILE, text)
