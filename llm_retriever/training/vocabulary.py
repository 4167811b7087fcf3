"""New embedding tokens: added to a backbone's tokenizer and embeddings before they are trained."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from llm_retriever.methods import NEW_TOKENS, Method
from llm_retriever.models.card import RetrieverCard
from llm_retriever.models.loading import load_tokenizer, quiet, whole
from llm_retriever.training.weight_files import SHARD_BYTES
from llm_retriever.training.weights import saved_dtype


def new_tokens(method: Method | RetrieverCard) -> list[str]:
    """Embedding tokens of a method that no ordinary vocabulary has, each once."""
    tokens = (*method.passage.embedding_tokens, *method.query.embedding_tokens)
    return [token for token in dict.fromkeys(tokens) if token in NEW_TOKENS]


def new_token_ids(tokenizer: Any, method: Method) -> list[int]:
    """Ids of a method's new tokens, all of which the tokenizer must have."""
    return [int(tokenizer.get_vocab()[token]) for token in new_tokens(method)]


def added_tokens(method: Method | RetrieverCard, backbone: Path) -> list[str]:
    """New tokens of a method that a backbone still lacks."""
    known = load_tokenizer(backbone).get_vocab()
    return [token for token in new_tokens(method) if token not in known]


@contextlib.contextmanager
def extended(backbone: Path, tokens: Sequence[str], *, random: bool = False) -> Iterator[Path]:
    """Yields a backbone that has `tokens`: the directory itself, or a temporary copy where any are to be added.

    Their embeddings start at the mean of all others: every start predicts the same, and training tells them apart by
    their positions. Where they are to be `random`, they start as those of an untrained model. The copy is deterministic, so
    that a resumed training finds the same one.
    """
    if not tokens:
        yield backbone
        return
    with tempfile.TemporaryDirectory(prefix="extended-") as folder:
        directory = Path(folder)
        tokenizer = load_tokenizer(backbone)
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
        dtype = saved_dtype(backbone)
        with quiet():
            with whole(backbone):
                model = AutoModelForCausalLM.from_pretrained(backbone, dtype=dtype, use_safetensors=True)
            if len(tokenizer) > model.config.get_text_config().vocab_size:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            _start(model, [tokenizer.get_vocab()[token] for token in tokens], random)
            model.save_pretrained(directory, max_shard_size=SHARD_BYTES)
        tokenizer.save_pretrained(directory)
        yield directory


@torch.no_grad()
def _start(model: Any, ids: Sequence[int], random: bool) -> None:
    draw, deviation = (
        torch.Generator().manual_seed(0),
        getattr(model.config.get_text_config(), "initializer_range", 0.02),
    )
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for weight in matrices.values():
        others = torch.ones(len(weight), dtype=torch.bool)
        others[list(ids)] = False
        drawn = torch.randn(len(ids), weight.shape[1], generator=draw) * deviation
        weight[list(ids)] = (drawn if random else weight[others].float().mean(dim=0)).to(weight.dtype)
