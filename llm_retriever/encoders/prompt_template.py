"""Tokenises texts in their prompts, for encoders of the BERT, T5 and GPT families.

Retrievers made of LLMs word their texts through `llm_retriever.models.prompts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_retriever.encoders.interface import Side
from llm_retriever.encoders.rows import Wiring
from llm_retriever.errors import InputError
from llm_retriever.models.batches import pad_id
from llm_retriever.models.prompts import passage_text, plain_ids

if TYPE_CHECKING:
    from llm_retriever.data.collection import Passage


class PromptTokenizer:
    """Tokenises the texts of one side as text: a literal `[SEP]` in one is not the separator.

    Args:
        tokenizer: The side's fast tokenizer.
        wiring: How texts go in.
        side: `query` or `passage`.

    Raises:
        InputError: The tokenizer has no single token for a bracket.
    """

    def __init__(self, tokenizer: Any, wiring: Wiring, side: Side) -> None:
        self.tokenizer, self.wiring = tokenizer, wiring
        self.prefix, brackets = wiring.prefix(side), wiring.brackets(side)
        self.brackets = [_single_id(tokenizer, token) for token in brackets] if brackets else None

    def queries(self, texts: Sequence[str], length: int) -> list[list[int]]:
        """Tokenises queries in their prompt, to at most `length` ids each."""
        return self._ids([self._string(text.strip()) for text in texts], length)

    def passages(self, passages: Sequence[Passage | str], length: int) -> list[list[int]]:
        """Tokenises passages with their titles, to at most `length` ids each; of a pair the longer part is cut first."""
        titled = [("", p.strip()) if isinstance(p, str) else (p.title.strip(), p.text.strip()) for p in passages]
        if self.wiring.title == "joined":
            return self._ids([self._string(passage_text(*pair, self.wiring.joiner)) for pair in titled], length)
        pairs = [(title or self.wiring.empty_title, text) for title, text in titled]
        rows: list[list[int]] = [[]] * len(pairs)
        for with_title in (False, True):
            chosen = [i for i, (title, _) in enumerate(pairs) if bool(title) is with_title]
            titles, texts = [pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen]
            found = self._ids(titles if with_title else texts, length, texts if with_title else None)
            for i, ids in zip(chosen, found, strict=True):
                rows[i] = ids
        return rows

    def prefix_length(self) -> int:
        """Number of the prefix's tokens that begin every row; 0 without a prefix."""
        if not self.prefix:
            return 0
        ids = self._ids([self.prefix], length=len(self.prefix) + 8)[0]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _string(self, text: str) -> str:
        worded = self.prefix + text
        return worded.lower() if self.wiring.lower_case else worded

    def _ids(self, texts: list[str], length: int, pairs: list[str] | None = None) -> list[list[int]]:
        self._check(length, pair=pairs is not None)
        if not texts:
            return []
        if self.brackets is not None:
            first, last = self.brackets
            return [[first, *ids[: length - 2], last] for ids in plain_ids(self.tokenizer, texts)]
        rows = self.tokenizer(texts, pairs, truncation=True, max_length=length, split_special_tokens=True)["input_ids"]
        # Without special tokens of its own, a tokenizer makes nothing of an empty text, and a model needs a token.
        return [ids or [pad_id(self.tokenizer)] for ids in rows]

    def _check(self, length: int, *, pair: bool) -> None:
        special = 2 if self.brackets is not None else self.tokenizer.num_special_tokens_to_add(pair)
        if length <= special:
            raise InputError(
                f"{length} tokens leave no room for a text: {special} are special ones",
                field="length",
                hint=f"use at least {special + 8}",
            )


def _single_id(tokenizer: Any, token: str) -> int:
    ids = plain_ids(tokenizer, [token])[0]
    if len(ids) != 1:
        raise InputError(f"the tokenizer has no single token for {token!r}", file=tokenizer.name_or_path)
    return int(ids[0])
