"""Wording a text for a method, in ids: one function for training, encoding and re-ranking.

Only the body of a text is ever cut; prefix, suffix, embedding tokens and the beginning- and end-of-sequence tokens survive
any length. Special tokens are appended as ids, because several fast tokenizers ignore their own `add_eos_token` flag.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.methods import Wording


class PromptEncoder:
    """Words texts and turns them into token ids.

    Args:
        tokenizer: A fast Hugging Face tokenizer (offsets are needed to cut).
        wording: Prefix, suffix and way of tokenising.
        length: The most ids a text may have, everything included.
        closing: Ids appended after the suffix: the embedding tokens.

    Raises:
        InputError: The prompt alone leaves no room for a text within `length`.
    """

    def __init__(self, tokenizer: Any, wording: Wording, length: int, closing: Sequence[int]) -> None:
        self.tokenizer, self.wording, self.length = tokenizer, wording, length
        self.opening = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        self.closing = list(closing)
        self._prefix, self._suffix = self._plain(wording.prefix), self._plain(wording.suffix)
        prompt = len(self.opening) + len(self._prefix) + len(self._suffix) + len(self.closing)
        if prompt >= length:
            raise InputError(
                f"{length} tokens leave no room for a text: the prompt alone takes {prompt}",
                field="length",
                mend=f"use at least {prompt + 8}",
            )

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def ids(self, text: str) -> list[int]:
        """Token ids of one worded text, at most `length` of them."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several worded texts; the tokenizer works on them in parallel."""
        bodies = [text.strip() for text in texts]
        room = self.length - len(self.opening) - len(self.closing)
        worded = self._pieces(bodies, room) if self.wording.tokenise == "pieces" else self._whole(bodies, room)
        return [[*self.opening, *ids, *self.closing] for ids in worded]

    def _pieces(self, bodies: list[str], room: int) -> list[list[int]]:
        room -= len(self._prefix) + len(self._suffix)
        encoded = self.tokenizer(bodies, add_special_tokens=False)["input_ids"] if bodies else []
        return [[*self._prefix, *ids[:room], *self._suffix] for ids in encoded]

    def _whole(self, bodies: list[str], room: int) -> list[list[int]]:
        prefix, suffix = self.wording.prefix, self.wording.suffix
        if not bodies:
            return []
        encoded = self.tokenizer(
            [prefix + body + suffix for body in bodies], add_special_tokens=False, return_offsets_mapping=True
        )
        return [
            ids if len(ids) <= room else self._cut(body, offsets, len(ids) - room, room)
            for body, ids, offsets in zip(bodies, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def _cut(self, body: str, offsets: list[tuple[int, int]], excess: int, room: int) -> list[int]:
        """Drops the last `excess` tokens of the body by their offsets, and repeats until the string fits."""
        start, prefix, suffix = len(self.wording.prefix), self.wording.prefix, self.wording.suffix
        while True:
            inside = [begin for begin, end in offsets if begin >= start and end <= start + len(body)]
            keep = inside[-excess] - start if excess < len(inside) else 0
            body = body[: min(keep, len(body) - 1)].rstrip() if body else body
            encoded = self.tokenizer(prefix + body + suffix, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
            if len(ids) <= room:
                return ids
            if not body:
                # Joined at the seams, an empty body can take more ids than the two pieces that were measured.
                return [*self._prefix, *self._suffix]
            excess = len(ids) - room


def passage_text(title: str, text: str, joiner: str = " ") -> str:
    """Title and text as one string; an empty title leaves the text alone."""
    return f"{title}{joiner}{text}".strip() if title else text.strip()


def symbol_ids(tokenizer: Any, symbols: Sequence[str]) -> list[int]:
    """Ids of embedding tokens; `eos` is the end-of-sequence token, anything else a token of the vocabulary.

    Raises:
        InputError: The tokenizer has no such token.
    """
    return [_symbol_id(tokenizer, symbol) for symbol in symbols]


def _symbol_id(tokenizer: Any, symbol: str) -> int:
    found = tokenizer.eos_token_id if symbol == "eos" else tokenizer.get_vocab().get(symbol)
    if found is None:
        raise InputError(
            f"the tokenizer has no token {symbol!r}",
            file=getattr(tokenizer, "name_or_path", None),
            field="embedding_tokens",
            mend="use a backbone that has it, or add it to the tokenizer and resize the embeddings",
        )
    return int(found)
