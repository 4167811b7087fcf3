"""Token ids that the authors' released code gives, and the two small tokenizers that it was given.

`released_ids.json` holds numbers alone. They were made by the released functions as they stand, each with the tokenizers below,
`TITLE`, `TEXT` and `QUERY`: `LLM2Vec.tokenize` (with the count of its `embed_mask`), `EchoParser.tokenize` with the templates of
its README, and `TrainDatasetForEmbedding.__getitem__` of LLM-QL with `mask_probability` 0, without its pads.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TITLE, TEXT, QUERY = "Old bridge", "It is old. Very old!", "how old is it"
IDS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("released_ids.json").read_text(encoding="utf-8"))
_SPECIAL = ["<unk>", "<s>", "</s>"]


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama-2's: every string begins with ▁, and `old` is a token where it begins a word."""
    letters = ["▁", "\n", *string.ascii_letters, *string.punctuation]
    merges = [("o", "l"), ("ol", "d"), ("▁", "old")]
    tokenizer = Tokenizer(models.BPE(_numbered(letters, merges), merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return _wrapped(tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: a space belongs to the word behind it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("o", "l"), ("ol", "d"), ("Ġ", "old"), ("Ġ", "I"), ("ĠI", "t"), ("Ġ", "h"), (":", "Ġ")]
    tokenizer = Tokenizer(models.BPE(_numbered(letters, merges), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _wrapped(tokenizer)


TOKENIZERS = {"sentencepiece": sentencepiece, "byte-level": byte_level}


def _numbered(letters: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    joined = (a + b for a, b in merges)
    return {token: number for number, token in enumerate(dict.fromkeys([*_SPECIAL, *letters, *joined]))}


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )
