"""Models in GGUF files, as llama.cpp reads them: checked, and loaded by transformers with their weights de-quantised.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError

SUFFIX = ".gguf"
# Keys of transformers' table that are not architectures, and encoder-decoders.
_NO_DECODERS = {"general", "tokenizer", "t5", "umt5", "t5encoder"}


def architectures() -> list[str]:
    """Names of the decoders that transformers can de-quantise, as GGUF files call them."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    return sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - _NO_DECODERS)


def check_gguf(path: Path, label: str) -> None:
    """Makes sure that a file is a whole GGUF file of an architecture that can be loaded; reads its header alone.

    Raises:
        InputError: It is not.
    """
    from gguf import GGUFReader

    mend = "fetch the file again"
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError("not a GGUF file", file=label, mend=f"{mend} (git lfs pull?)")
    try:
        fields = GGUFReader(path).fields
        named = fields["general.architecture"].contents() if "general.architecture" in fields else None
    except Exception as error:  # The reader trusts what it reads: a cut or changed file ends in errors of any kind.
        raise InputError(f"is cut off or damaged ({type(error).__name__})", file=label, mend=mend) from None
    if named not in architectures():
        raise InputError(
            f"the architecture {named!r} cannot be de-quantised",
            file=label,
            field="general.architecture",
            mend=f"use a model of one of {', '.join(architectures())}",
        )


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
    check_gguf(path, label)
    named = {"gguf_file": path.name}
    with _refusals(label):
        model: Any = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **named)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **named)
    # It is a plain model now; transformers refuses to save one that it holds for quantised.
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
    return model, tokenizer


@contextlib.contextmanager
def _refusals(label: str) -> Iterator[None]:
    """Turns what transformers says of a file that it cannot load into one line."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"transformers cannot load it: {said}", file=label, mend="use another GGUF file, or safetensors"
        ) from error
