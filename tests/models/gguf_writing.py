"""Small GGUF files for tests: a random Llama with a byte-level BPE tokenizer, its matrices quantised as asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

LAYERS, HIDDEN, INNER, HEADS, KEY_HEADS = 3, 64, 96, 4, 2
MATRICES = {
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "ffn_down": (HIDDEN, INNER),
}


def write_gguf(path: Path, tokenizer_file: Path, kind: Kind, architecture: str = "llama") -> Path:
    """Writes a model; `tokenizer_file` is the tokenizer.json of a byte-level BPE."""
    vocabulary, merges = _vocabulary(tokenizer_file)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token.startswith("<") and token.endswith(">") else 1 for token in vocabulary])
    writer.add_token_merges(merges)
    for name, add in (("<s>", writer.add_bos_token_id), ("</s>", writer.add_eos_token_id)):
        add(vocabulary.index(name))
    writer.add_pad_token_id(vocabulary.index("<pad>"))
    writer.add_unk_token_id(vocabulary.index("<unk>"))
    _tensors(writer, len(vocabulary), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _vocabulary(tokenizer_file: Path) -> tuple[list[str], list[str]]:
    content = json.loads(tokenizer_file.read_text())
    ids = dict(content["model"]["vocab"]) | {row["content"]: row["id"] for row in content["added_tokens"]}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["model"]["merges"]]
    return sorted(ids, key=ids.__getitem__), merges


def _tensors(writer: gguf.GGUFWriter, vocabulary: int, kind: Kind) -> None:
    draw = np.random.default_rng(5)

    def add(name: str, *shape: int) -> None:
        values = draw.normal(0, 0.2, shape).astype(np.float32)
        packed: Any = values.astype(np.float16) if kind == Kind.F16 else gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))

    add("token_embd", vocabulary, HIDDEN)
    add_norm("output_norm")
    for layer in range(LAYERS):
        for name, shape in MATRICES.items():
            add(f"blk.{layer}.{name}", *shape)
        add_norm(f"blk.{layer}.attn_norm")
        add_norm(f"blk.{layer}.ffn_norm")
