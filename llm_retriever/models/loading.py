"""Loads an encoder's model and tokenizer: safetensors only, no code of the source, no weight left to chance."""

from __future__ import annotations

import contextlib
import errno
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from llm_retriever.errors import InputError
from llm_retriever.models.fp32_products import use_fast_products
from llm_retriever.precision import dtype_of
from llm_retriever.processes.memory import keep_memory

HINT = "copy the whole directory again: configuration and weights belong together"


def load_model(
    directory: Path, precision: str, kind: str = "AutoModel", unread: tuple[str, ...] = (), **options: Any
) -> tuple[Any, list[str]]:
    """Loads a model in evaluation mode; also names the weights in its directory that it has no place for.

    Args:
        directory: A Hugging Face directory.
        precision: `bf16`, `fp16`, `fp32` or `auto`.
        kind: Name of its class in transformers.
        unread: Starts of the names of weights that are not read out, and may be missing.
        options: Further arguments of transformers' `from_pretrained`.

    Raises:
        InputError: It cannot be loaded, or a weight is missing.
    """
    free_memory()
    keep_memory()
    with whole(directory), quiet():
        model, loading = getattr(transformers, kind).from_pretrained(
            directory,
            dtype=dtype_of(precision),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    missing = sorted(name for name in loading["missing_keys"] if not name.startswith(unread))
    if missing:
        raise InputError(f"the weights lack {missing[0]}", file=directory)
    return use_fast_products(model.eval()), sorted(loading["unexpected_keys"])


def load_config(directory: Path) -> Any:
    """Loads the configuration of a Hugging Face directory.

    Raises:
        InputError: There is none, or it is damaged.
    """
    with whole(directory, "configuration"):
        return transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def whole(directory: str | Path, what: str = "model") -> Iterator[None]:
    """Turns transformers' errors about a model's files into an error with a hint.

    Args:
        directory: Where the files are, for the message.
        what: What is loaded from them.

    Raises:
        InputError: A file is missing or damaged, or weights have another shape than the configuration says.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not _is_damage(error):
            raise
        said = str(error).strip().splitlines() or [type(error).__name__]
        first = " ".join(said[: 2 if said[0].endswith(":") else 1])
        raise InputError(f"the {what} cannot be loaded ({first})", file=directory, hint=HINT) from error


def _is_damage(error: Exception) -> bool:
    """Whether an error comes of what a file holds; others, such as memory that is lacking, are RuntimeErrors."""
    if isinstance(error, OSError):
        # transformers' own have no number; others are of permissions, memory or a disk.
        return error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
    if isinstance(error, RuntimeError):
        return "mismatch" in str(error) or isinstance(error, RecursionError)  # JSON that is nested too deep
    # Tokenizers raise Exception itself, for instance for merges of tokens that the vocabulary lacks.
    of_content = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
    return isinstance(error, (*of_content, SafetensorError, StrictDataclassError)) or type(error) is Exception


def free_memory() -> None:
    """Frees the memory of models without references, because the next one needs it; models hold cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_tokenizer(directory: Path) -> Any:
    """Loads the tokenizer of a Hugging Face directory.

    Raises:
        InputError: There is none, it is damaged, or it is not a fast one.
    """
    with whole(directory, "tokenizer"), quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
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
