"""Puts a text into a method's prompt, as token ids: one function for training, encoding and re-ranking.

Only the body of a text is ever cut; prefix, suffix, embedding tokens and the beginning- and end-of-sequence tokens survive
any length. Special tokens are appended as ids, because several fast tokenizers ignore their own `add_eos_token` flag.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from llm_retriever.errors import InputError
from llm_retriever.methods import PromptTemplate

CHARACTERS_PER_TOKEN = 12
"""Longer than the words of any language on average: so many characters a token surely fill the room."""
Encoded = tuple[list[int], list[tuple[int, int]]]


class PromptEncoder:
    """Puts texts into a prompt and tokenises them.

    A text is tokenised as text: a literal `</s>` in it does not become the end-of-sequence token.

    Args:
        tokenizer: A fast Hugging Face tokenizer (offsets are needed to cut).
        template: Prefix, suffix and way of tokenising.
        length: The most ids a text may have, everything included.
        closing: Ids appended after the suffix; None = the prompt's embedding tokens.
        setting: Name of the setting that `length` comes from, for errors.

    Raises:
        InputError: The prompt alone leaves no room for a text within `length`, or the tokenizer gives no offsets.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: PromptTemplate,
        length: int,
        closing: Sequence[int] | None = None,
        setting: str = "length",
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "is a slow tokenizer, which gives no offsets to cut texts by",
                file=tokenizer.name_or_path,
                hint="use a backbone with a tokenizer.json",
            )
        self.tokenizer, self.template, self.length = tokenizer, template, length
        self.opening = opening_ids(tokenizer)
        self.closing = symbol_ids(tokenizer, template.embedding_tokens) if closing is None else list(closing)
        self._prefix, (self._suffix,) = prefix_ids(tokenizer, template), plain_ids(tokenizer, [template.suffix])
        self._between = None if template.between is None else plain_ids(tokenizer, [template.between])[0]
        self._copies, self._lead = 1 if self._between is None else 2, "".join(template.prefix_pieces)
        prompt = (
            len(self.opening) + len(self._prefix) + len(self._between or ()) + len(self._suffix) + len(self.closing)
        )
        if length - prompt < self._copies:
            copies = "a text" if self._copies == 1 else "two copies of a text"
            raise InputError(
                f"{length} tokens leave no room for {copies}: the prompt alone takes {prompt}",
                field=setting,
                hint=f"use at least {prompt + 8 * self._copies}",
            )
        self._room = length - len(self.opening) - len(self.closing)
        self._body_room = (length - prompt) // self._copies

    def ids(self, text: str) -> list[int]:
        """Tokenises one text in its prompt, to at most `length` ids."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenises several texts in their prompts, in parallel."""
        if not texts:
            return []
        bodies = [text.strip() for text in texts]
        if self.template.tokenise == "pieces":
            return self._around(self._body_ids(bodies))
        return [[*self.opening, *ids, *self.closing] for ids in self._whole(bodies)]

    def pooled(self, row: Sequence[int], reads: str) -> int:
        """Counts the last tokens of a row that its vector is made of.

        Args:
            row: Ids that this encoder made, of any length limit.
            reads: `all`, `last`, `embedding` or `text`, as in `llm_retriever.models.pooling.Pooling`.

        Raises:
            ValueError: This prompt has no such tokens.
        """
        if reads in ("all", "last"):
            return len(row) if reads == "all" else 1
        if reads == "embedding" and self.closing:
            return len(self.closing)
        if reads == "text":
            first, behind = self.body_span(row)
            bodies = behind - first - len(self._between or ())
            return max(1, bodies // self._copies + len(row) - behind)
        raise ValueError(f"pooling {reads!r} does not go with {self.template}")

    def body_span(self, row: Sequence[int]) -> tuple[int, int]:
        """Returns the first position of the text in a row and the one behind its last; spans both copies where there are two.

        A token of `whole` that holds a part of the prompt and of the text, as `▁word` after a space, is the text's.
        """
        first, behind = len(self.opening), len(row) - len(self.closing)
        if self.template.tokenise == "pieces":
            return first + len(self._prefix), behind - len(self._suffix)
        before, after = self._seams
        first += _shared(row[first:behind], before)
        return first, behind - _shared(row[first:behind][::-1], after[::-1])

    @functools.cached_property
    def _seams(self) -> tuple[list[int], list[int]]:
        """Ids of the prompt before and behind a text, as they are in a whole string."""
        before, word, ended = plain_ids(self.tokenizer, [self._lead.rstrip(), "river", f"river{self.template.suffix}"])
        return before, ended[_shared(ended, word) :]

    def _around(self, bodies: Sequence[list[int]]) -> list[list[int]]:
        """Puts the prompt around bodies and cuts these to fit (`pieces`)."""
        head, tail = [*self.opening, *self._prefix], [*self._suffix, *self.closing]
        cut = [ids[: self._body_room] for ids in bodies]
        if self._between is not None:
            cut = [[*ids, *self._between, *ids] for ids in cut]
        return [[*head, *ids, *tail] for ids in cut]

    def _body_ids(self, bodies: Sequence[str]) -> list[list[int]]:
        """Tokenises texts without their prompt, each at least as far as there is room for it."""
        starts = [self._start_of(body) for body in bodies]
        rows = plain_ids(self.tokenizer, starts)
        short = [i for i, ids in enumerate(rows) if len(ids) < self._body_room and len(starts[i]) < len(bodies[i])]
        for i, ids in zip(short, plain_ids(self.tokenizer, [bodies[i] for i in short]), strict=True):
            rows[i] = ids
        return rows

    def _start_of(self, body: str) -> str:
        """Cuts a very long text to its start, up to a space: a book is not tokenised for its first page."""
        most = CHARACTERS_PER_TOKEN * self.length
        return body[: body.rfind(" ", 0, most)].rstrip() if len(body) > most and " " in body[:most] else body

    def _whole(self, bodies: list[str]) -> list[list[int]]:
        """Tokenises whole strings; those that are too long lose the end of their body, until all fit."""
        kept = [self._start_of(body) for body in bodies]
        rows = self._encoded(kept)
        short = [i for i, (ids, _) in enumerate(rows) if len(ids) <= self._room and len(kept[i]) < len(bodies[i])]
        self._encode_again(short, bodies, rows)
        for i in short:
            kept[i] = bodies[i]
        while long := [i for i, (ids, _) in enumerate(rows) if len(ids) > self._room]:
            for i in long:
                # Joined at the seams, an empty body can take more ids than the two pieces that were measured.
                rows[i] = rows[i] if kept[i] else ([*self._prefix, *self._suffix], [])
                kept[i] = self._cut(kept[i], *rows[i])
            self._encode_again([i for i in long if len(rows[i][0]) > self._room], kept, rows)
        return [ids for ids, _ in rows]

    def _encode_again(self, chosen: list[int], bodies: list[str], rows: list[Encoded]) -> None:
        for i, encoded in zip(chosen, self._encoded([bodies[i] for i in chosen]), strict=True):
            rows[i] = encoded

    def _encoded(self, bodies: list[str]) -> list[Encoded]:
        """Tokenises bodies in their prompt, with character offsets."""
        if not bodies:
            return []
        encoded = self.tokenizer(
            [self._lead + body + self.template.suffix for body in bodies],
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

    def _cut(self, body: str, ids: list[int], offsets: list[tuple[int, int]]) -> str:
        """Cuts off a body's last tokens, as many as are too many, and one character at least."""
        first, last = len(self._lead), len(self._lead) + len(body)
        inside, excess = [begin for begin, end in offsets if begin >= first and end <= last], len(ids) - self._room
        keep = inside[-excess] - first if excess < len(inside) else 0
        return body[: max(0, min(keep, len(body) - 1))].rstrip()


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenises texts as they stand: nothing added, and names of special tokens are ordinary characters."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def prefix_ids(tokenizer: Any, template: PromptTemplate) -> list[int]:
    """Tokenises what stands before a text, each of its pieces by itself."""
    return [token for piece in plain_ids(tokenizer, template.prefix_pieces) for token in piece]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Counts the first ids that two rows share."""
    alike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(alike, min(len(one), len(other)))


def opening_ids(tokenizer: Any) -> list[int]:
    """Ids that every row begins with: the beginning-of-sequence token, where the tokenizer has one."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def passage_text(title: str, text: str, joiner: str = " ") -> str:
    """Joins title and text; an empty title leaves the text alone."""
    return f"{title}{joiner}{text}".strip() if title else text.strip()


def symbol_ids(tokenizer: Any, symbols: Sequence[str]) -> list[int]:
    """Ids of embedding tokens; `eos` is the end-of-sequence token, anything else a token of the vocabulary.

    Raises:
        InputError: The tokenizer has no such token.
    """
    return [_symbol_id(tokenizer, symbol) for symbol in symbols]


def _symbol_id(tokenizer: Any, symbol: str) -> int:
    symbol_id = tokenizer.eos_token_id if symbol == "eos" else tokenizer.get_vocab().get(symbol)
    if symbol_id is None:
        raise InputError(
            f"the tokenizer has no token {symbol!r}",
            file=getattr(tokenizer, "name_or_path", None),
            field="embedding_tokens",
            hint="adapt the backbone first with what trains it (ebae_ebar, or ql with embedding=new4)",
        )
    return int(symbol_id)
