"""Bags of words: the tokens of a text that a vector is to predict, and the loss of that prediction.

Source: Llama2Vec (arXiv 2312.15503), Eq. 6, and its code FlagOpen/FlagEmbedding, research/LLARA/pretrain.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_retriever.adaptation.query_likelihood import mean_count
from llm_retriever.models.prompts import plain_ids

IGNORED = -100
"""Fills up the target ids of a batch."""
NOT_A_WORD = re.compile(r"[\W_]+")
_WORDS = """
a about above after again against ain all am an and any are aren as at be because been before being below between both
but by can couldn d did didn do does doesn doing don down during each few for from further had hadn has hasn have
haven having he her here hers herself him himself his how i if in into is isn it its itself just ll m ma me mightn
more most mustn my myself needn no nor not now o of off on once only or other our ours ourselves out over own re s
same shan she should shouldn so some such t than that the their theirs them themselves then there these they this
those through to too under until up ve very was wasn we were weren what when where which while who whom why will with
won wouldn y you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_WORDS.split())
"""The English stop words of NLTK, and what punctuation leaves of their contractions."""


def content_words(text: str) -> str:
    """Joins the words of a text by single spaces, without punctuation, underscores and English stop words.

    Example:
        >>> content_words("It's the river_bank, isn't it?")
        'river bank'
    """
    return " ".join(word for word in NOT_A_WORD.sub(" ", text).split() if word.lower() not in STOP_WORDS)


def without_specials(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """Ids that are no special tokens of the tokenizer, whatever their numbers."""
    specials = set(tokenizer.all_special_ids)
    return [token for token in ids if token not in specials]


def content_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenises each text's content words."""
    rows = plain_ids(tokenizer, [content_words(text) for text in texts])
    return [without_specials(tokenizer, ids) for ids in rows]


def stacked(bags: Sequence[Sequence[int]]) -> Tensor:
    """Stacks bags of ids to int64 [bags, ids of the largest, at least 1], filled up with `IGNORED`."""
    width = max(1, *(len(bag) for bag in bags))
    return torch.tensor([[*bag, *[IGNORED] * (width - len(bag))] for bag in bags], dtype=torch.long)


def unique_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of each bag under one distribution, as the authors' code has it.

    With z = element-wise maximum of the logits over the embedding tokens and U = the different ids of a bag,
    `-(1/|U|) Σ_{u∈U} log softmax(z)_u`, and the mean over the bags that are not empty, those of all processes together.

    Args:
        logits: Float [bags, embedding tokens, vocabulary].
        targets: int64 [bags, width], each id once, filled up with `IGNORED`.

    Returns:
        A scalar whose mean over the processes is the loss of all; 0 if every bag is empty.
    """
    likelihood, mask = _gathered(logits.amax(dim=1).float().log_softmax(dim=-1), targets)
    sizes = mask.sum(dim=1)
    return -_mean(likelihood.sum(dim=1) / sizes.clamp(min=1), sizes > 0)


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log-likelihood of every token of the bags, Eq. 6 of the paper with its logarithm.

    The paper prints the sum over the tokens of a text and has one embedding token. Here it is the mean over the tokens of
    all bags of all processes, so that the learning rate does not depend on the length of texts; with several embedding
    tokens each of them predicts every token, and their log-likelihoods are averaged.

    Args:
        logits: Float [bags, embedding tokens, vocabulary].
        targets: int64 [bags, width], with repetitions, filled up with `IGNORED`.

    Returns:
        A scalar whose mean over the processes is the loss of all; 0 if every bag is empty.
    """
    likelihood, mask = _gathered(logits.float().log_softmax(dim=-1).mean(dim=1), targets)
    return -_mean(likelihood, mask)


def _gathered(likelihood: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each target, 0 where there is none, and a mask of those there are; both [bags, width]."""
    mask = targets != IGNORED
    return likelihood.gather(1, targets.clamp(min=0)) * mask, mask


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the counted values, the number being that of all processes; the others are 0."""
    return values.sum() / mean_count(values[counted]).clamp(min=1e-6)
