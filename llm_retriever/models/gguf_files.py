"""Checks models in GGUF files, as of llama.cpp, and loads them through transformers with their weights de-quantised.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError

SUFFIX = ".gguf"
# Keys of transformers' table that are not architectures, and encoder-decoders.
_NO_DECODERS = {"general", "tokenizer", "t5", "umt5", "t5encoder"}
_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}


def architectures() -> list[str]:
    """Decoders that transformers can de-quantise, as GGUF files call them."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - _NO_DECODERS)


def configuration(path: Path, label: str) -> dict[str, Any]:
    """Reads a model's configuration from a GGUF file's header, under the names of transformers; no weights are read.

    Raises:
        InputError: It is no whole GGUF file, or says too little.
    """
    reader = _read(path, label)
    named = str(_field(reader, "general.architecture"))
    embeddings = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    values = {name: _field(reader, f"{named}.{key}") for name, key in _KEYS.items()}
    if embeddings is None or None in (
        values["num_hidden_layers"],
        values["hidden_size"],
        values["num_attention_heads"],
    ):
        raise InputError("does not say how large the model is", file=label, hint="use another GGUF file")
    known = {name: int(value) for name, value in values.items() if value is not None}
    tied = not any(tensor.name == "output.weight" for tensor in reader.tensors)
    return {**known, "vocab_size": int(embeddings.shape[-1]), "tie_word_embeddings": tied}


def check_gguf(path: Path, label: str) -> None:
    """Raises InputError unless a file is a whole GGUF file of a loadable architecture; reads its header alone.

    Raises:
        InputError: It is not.
    """
    named = _field(_read(path, label), "general.architecture")
    if named not in architectures():
        raise InputError(
            f"the architecture {named!r} cannot be de-quantised",
            file=label,
            field="general.architecture",
            hint=f"use a model of one of {', '.join(architectures())}",
        )


def _read(path: Path, label: str) -> Any:
    from gguf import GGUFReader

    hint = "fetch the file again"
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError("not a GGUF file", file=label, hint=f"{hint} (git lfs pull?)")
    try:
        return GGUFReader(str(path))  # As transformers names it, which `_read_once` goes by.
    except Exception as error:  # The reader trusts what it reads: a cut or changed file ends in errors of any kind.
        raise InputError(f"is cut off or damaged ({type(error).__name__})", file=label, hint=hint) from None


def _field(reader: Any, name: str) -> Any:
    """Reads a value of the header; None where it has none that can be read."""
    with contextlib.suppress(Exception):
        return reader.fields[name].contents()
    return None


def load_gguf(path: Path, label: str) -> tuple[Any, Any]:
    """Loads a causal LM and its tokenizer from a GGUF file.

    Args:
        path: The file.
        label: What the user calls it; error messages name it.

    Returns:
        The model, in fp32 as its quantised weights stand for, and the fast tokenizer.

    Raises:
        InputError: The file is damaged, or of a kind that transformers cannot load.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    # They fill a pod's log with redrawn lines.
    logging.disable_progress_bar()
    named = {"gguf_file": path.name}
    with _read_once():
        check_gguf(path, label)
        with _refusals(label):
            model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **named)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **named)
    # It is a plain model now; transformers refuses to save one that it holds for quantised.
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Lets transformers and this module share one reading of a header, which takes seconds with 49,152 tokens.

    transformers reads it for the configuration, the weights and the tokenizer each, and asks for the same table of names
    once for every submodule.
    """
    import gguf

    read, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(read), functools.cache(names)  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = read, names  # type: ignore[assignment,misc]


@contextlib.contextmanager
def _refusals(label: str) -> Iterator[None]:
    """Turns transformers' errors about a file that it cannot load into one line."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"transformers cannot load it: {said}", file=label, hint="use another GGUF file, or safetensors"
        ) from error
