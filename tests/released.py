"""What the authors' released code was given and what ids it gave: two small tokenizers, a small Llama, texts.

`released_ids.json` holds numbers alone. They were made by the released functions as they stand, each with the tokenizers below,
`TITLE`, `TEXT` and `QUERY`, and are without pads: `LLM2Vec.tokenize` (with the count of its `embed_mask`; `first word` is of the
query `FIRST_WORD`), `EchoParser.tokenize` with the templates of its README, `TrainDatasetForEmbedding.__getitem__` of LLM-QL with
`mask_probability` 0 (`ql`) and of both stages of LLARA, `TrainCollator` of LLM-QL and of Tevatron, and PromptEOL's
`generate_and_tokenize_prompt` (`cut` is of the second passage). `untitled` rows have `TEXT` and an empty title.

`ebae_ebar` (of `FOLLOWED`, with its bags of words), `mntp` (blocks of all passages, what `DataCollatorForLanguageModeling` masked
of them, and the labels) and `simcse` belong to the values of `test_released_values.py`, which tells the repositories' commits.
"""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TITLE, TEXT, QUERY = "Old bridge", "It is old. Very old!", "how old is it"
FIRST_WORD = "who built it"
QUERIES = [QUERY, "how does the mill work"]
PASSAGES = [
    (TITLE, TEXT),
    ("River", "The old mill stands by the river, and its wheel turns slowly."),
    ("Mill", "A wheel in the water turns the old stones of the mill."),
    ("Poem", "It was read aloud in the valley, and then it was not."),
]
"""Title and text: each query's positive, and behind it its hard negative."""
FOLLOWED = [
    (
        "The old mill stands by the river, and its wheel turns slowly. " * 2,
        "Its stones are old, and they are not for sale.",
    ),
    ("It is old_Very old!", "mill wheel " * 20 + "zigzag"),
]
"""Texts, and what follows them."""
IDS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("released_ids.json").read_text(encoding="utf-8"))
_SPECIAL = ["<unk>", "<s>", "</s>"]


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama-2's: every string begins with ▁, and `old` is a token where it begins a word."""
    letters = ["▁", "\n", *string.ascii_letters, *string.punctuation]
    merges = [("o", "l"), ("ol", "d"), ("▁", "old")]
    tokenizer = Tokenizer(models.BPE(_numbered(letters, merges), merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    return _wrapped(tokenizer)


def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2's: a space belongs to the word behind it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("o", "l"), ("ol", "d"), ("Ġ", "old"), ("Ġ", "I"), ("ĠI", "t"), ("Ġ", "h"), (":", "Ġ")]
    tokenizer = Tokenizer(models.BPE(_numbered(letters, merges), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _wrapped(tokenizer)


def with_new_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer with `<s1>` to `<s16>` behind its other tokens."""
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<s{number}>" for number in range(1, 17)]})
    return tokenizer


def llama(vocabulary: int) -> LlamaForCausalLM:
    """A Llama of two layers and 32 numbers a token, float32, every weight of which follows from its name and its place."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            numbers = torch.from_numpy(_numbers(name, parameter.numel())).view(parameter.shape)
            spread = 2.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(numbers * spread if parameter.ndim == 2 else 1 + numbers / 4)
    return model.eval()


def _numbers(name: str, count: int) -> np.ndarray:
    """Numbers from -1 to 1, float64 [count], by integer arithmetic alone (splitmix64): the same everywhere."""
    start = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    steps = np.arange(1, count + 1, dtype=np.uint64)
    mixed = np.uint64(start) + steps * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**52 - 1


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
