"""Checks the length of an adaptation's rows against the positions of the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.methods import AdaptationRecipe, Method
from llm_retriever.models.loading import load_config, load_tokenizer
from llm_retriever.models.prompts import opening_ids, plain_ids

logger = logging.getLogger(__name__)


def parts(recipe: AdaptationRecipe, method: Method, tokenizer: Any) -> dict[str, int]:
    """Most tokens of each part of a row that stand at positions of their own, by what the part is called."""
    return recipe.parts(method, len(opening_ids(tokenizer)), lambda text: len(plain_ids(tokenizer, [text])[0]))


def check_lengths(recipe: AdaptationRecipe, method: Method, backbone: Path) -> None:
    """Raises InputError, before weights are loaded, for rows longer than the model can read; warns of lost windows.

    Raises:
        InputError: With the most that `passage_length` may be.
    """
    config = load_config(backbone).get_text_config()
    most, window = (getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window"))
    tokens = parts(recipe, method, load_tokenizer(backbone))
    total = sum(tokens.values())
    if most is None or total <= most:
        if window and total > window and recipe.reads_embedding:
            logger.warning(
                "in this training all layers see rows of up to %d tokens, also beyond their window of %d", total, window
            )
        return
    others = "".join(f" + {number} ({name})" for name, number in tokens.items() if name != "passage_length")
    raise InputError(
        f"the model reads at most {most} tokens, a row takes {tokens['passage_length']}{others}",
        file=backbone,
        field="passage_length",
        hint=_hint(tokens["passage_length"] - (total - most)),
    )


def _hint(room: int) -> str:
    return f"use at most {room}" if room > 0 else "lower the other lengths, or use another backbone"
