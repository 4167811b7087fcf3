"""EBAE/EBAR in two ways: both prompts in one pass over the text, and an ordinary causal pass for each prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm_retriever.adaptation import bag_of_words
from llm_retriever.adaptation.ebae_ebar import EbaeEbarLoss
from llm_retriever.methods import EBAE_EBAR

TEXT, SELF, NEXT, EMBEDDING, TARGETS = 224, 19, 18, 8, 60
"""Tokens of the text, of both prompts, of their ends that embed, and distinct tokens of a text."""
WIDTH = TEXT + SELF + NEXT


def batch(vocabulary: int, rows: int) -> dict[str, Tensor]:
    """A batch as `JointCollator` makes it, of random ids."""
    torch.manual_seed(0)
    return {
        "input_ids": torch.randint(vocabulary, (rows, WIDTH)),
        "attention_mask": torch.ones(rows, WIDTH, dtype=torch.long),
        "position_ids": torch.cat([torch.arange(TEXT + SELF), torch.arange(TEXT, TEXT + NEXT)]).expand(rows, -1),
        "self_start": torch.full((rows,), TEXT),
        "next_start": torch.full((rows,), TEXT + SELF),
        "self_places": torch.arange(TEXT + SELF - EMBEDDING, TEXT + SELF).expand(rows, -1),
        "next_places": torch.arange(WIDTH - EMBEDDING, WIDTH).expand(rows, -1),
        "self_targets": torch.randint(vocabulary, (rows, TARGETS)),
        "next_targets": torch.randint(vocabulary, (rows, TARGETS)),
        "targets": torch.zeros(rows, WIDTH, dtype=torch.bool),
    }


def joint() -> EbaeEbarLoss:
    """The loss of one pass, without that of the text itself."""
    return EbaeEbarLoss(replace(EBAE_EBAR["default"], ar_weight=0.0, bag_weight=1.0))


def apart(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The same loss by a pass for each prompt."""
    ids = batch["input_ids"]
    rows = {"self": ids[:, : TEXT + SELF], "next": torch.cat([ids[:, :TEXT], ids[:, TEXT + SELF :]], dim=1)}
    found = [
        bag_of_words.unique_loss(
            model(input_ids=inputs, use_cache=False, logits_to_keep=EMBEDDING).logits, batch[f"{branch}_targets"]
        )
        for branch, inputs in rows.items()
    ]
    return torch.stack(found).sum()
