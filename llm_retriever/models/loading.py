"""Loads an encoder's model and tokenizer: safetensors only, no code of the source, no weight left to chance."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging

from llm_retriever.errors import InputError
from llm_retriever.models.fp32_products import use_fast_products
from llm_retriever.precision import dtype_of

HINT = "copy the whole directory again: configuration and weights belong together"


def load_model(
    directory: Path, precision: str, kind: str = "AutoModel", unread: tuple[str, ...] = ()
) -> tuple[Any, list[str]]:
    """Loads a model in evaluation mode; also names the weights in its directory that it has no place for.

    Args:
        directory: A Hugging Face directory.
        precision: `bf16`, `fp16`, `fp32` or `auto`.
        kind: Name of its class in transformers.
        unread: Starts of the names of weights that are not read out, and may be missing.

    Raises:
        InputError: It cannot be loaded, or a weight is missing.
    """
    free_memory()
    with whole(directory), quiet():
        model, loading = getattr(transformers, kind).from_pretrained(
            directory,
            dtype=dtype_of(precision),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(unread))
    if missing:
        raise InputError(f"the weights lack {missing[0]}", file=directory)
    return use_fast_products(model.eval()), sorted(loading["unexpected_keys"])


@contextlib.contextmanager
def whole(directory: Path) -> Iterator[None]:
    """Turns transformers' errors about a model's files into an error with a hint.

    Raises:
        InputError: A file is missing or damaged, or weights have another shape than the configuration says.
    """
    try:
        yield
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "mismatch" not in str(error):
            raise
        first = str(error).strip().partition("\n")[0]
        raise InputError(f"the model cannot be loaded ({first})", file=directory, hint=HINT) from None


def free_memory() -> None:
    """Frees the memory of models without references, because the next one needs it; models hold cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_tokenizer(directory: Path) -> Any:
    """Loads the tokenizer of a Hugging Face directory.

    Raises:
        InputError: There is none, or it is not a fast one.
    """
    try:
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer cannot be loaded ({error})", file=directory) from None
    if not tokenizer.is_fast:
        raise InputError(
            "the tokenizer is a slow one", file=directory, hint="save its tokenizer.json with transformers"
        )
    return tokenizer


def chosen_device(device: str | None) -> str:
    """Returns the requested device, else the first GPU, or the processor."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' bars and reports while inside: a model without head is meant to leave the head unused."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
