"""Writes a retriever as a plain Hugging Face directory, and computes its vectors as programs without this library do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from llm_retriever.encoders.retriever import Retriever, Side, Vectors
from llm_retriever.errors import InputError
from llm_retriever.exporting.probes import SIDES, Source
from llm_retriever.models.card import weights_digest
from llm_retriever.models.loading import quiet
from llm_retriever.models.pooling import POOLINGS, pool
from llm_retriever.models.prompts import PromptEncoder
from llm_retriever.training.weight_files import SHARD_BYTES


def write(source: Source, directory: Path) -> None:
    """Writes encoder, tokenizer and card into an empty directory; the card names the weights as they lie there."""
    retriever = source.retriever
    with quiet():
        retriever.model.save_pretrained(directory, max_shard_size=SHARD_BYTES)
    retriever.tokenizer.save_pretrained(directory)
    dataclasses.replace(retriever.card, weights=weights_digest(directory)).save(directory)


def vectors(retriever: Retriever, directory: Path, texts: dict[Side, list[str]]) -> dict[Side, Vectors]:
    """Encodes with what lies in `directory` alone, in fp32, one text at a time; attention is that of its configuration.

    Raises:
        InputError: The model does not remember that it is bidirectional.
    """
    card, device = retriever.card, retriever.model.device
    with quiet():
        model = AutoModel.from_pretrained(directory, dtype=torch.float32, local_files_only=True).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if card.attention == "bidirectional" and getattr(model.config, "is_causal", None) is not False:
        raise InputError(
            "the configuration cannot say that the model is bidirectional", field="format", hint="use Retriever"
        )
    vectors_by_side: dict[Side, Vectors] = {}
    for side in SIDES:
        encoder = PromptEncoder(tokenizer, getattr(card, side), getattr(card, f"{side}_length"))
        vectors_by_side[side] = np.stack([_vector(model, encoder, text, card) for text in texts[side]])
    return vectors_by_side


@torch.inference_mode()
def _vector(model: Any, encoder: PromptEncoder, text: str, card: Any) -> Vectors:
    row = encoder.ids(text)
    ids = torch.tensor([row], device=model.device)
    counts = torch.tensor([encoder.pooled(row, POOLINGS[card.pooling].reads)], device=model.device)
    mask = torch.ones_like(ids)
    hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return pool(hidden, mask, card.pooling, counts, normalise=card.normalise)[0].cpu().numpy()
