"""Probes: texts on which an export is compared with its retriever, before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_retriever.encoders.retriever import BATCH_TOKENS, MODEL_DIRECTORY, Retriever, Side, Vectors
from llm_retriever.errors import InputError
from llm_retriever.models.prompts import PromptEncoder, passage_text
from llm_retriever.stores.opening import fetched
from llm_retriever.training.weights import saved_dtype

SIDES: tuple[Side, Side] = ("query", "passage")
MINIMUM_COSINE = 0.9999
_TITLED = (("Old bridge", "Built in 1302."), ("", "Built by hand in 1302, near the coast of the north"))
_PLAIN = (
    "river",
    "Which river needs water, and where?",
    "Grüße aus Köln, naïve café, 你好世界 🙂🙂",
    "It ends with a quotation: 'as old as the bridge'",
    'or with "another one"',
    "(in brackets)",
    "lines:\n- one;\n\n- two:",
    "x = f(y) → [0, 1]…",
)
_ROOMY = 4096
_LONG = "The river in the north is old, needs water and moves slowly past 17 bridges that were built by hand; "


@dataclass(frozen=True)
class Source:
    """The retriever to export, and its vectors of the probes in fp32.

    Attributes:
        retriever: Retriever with weights of the precision that they are to be saved in.
        texts: Probe texts of each side; titles are joined already.
        rows: Their token ids.
        vectors: Their vectors, float32 [probes, dimension].
    """

    retriever: Retriever
    texts: dict[Side, list[str]]
    rows: dict[Side, list[list[int]]]
    vectors: dict[Side, Vectors]


@contextmanager
def opened(retriever: Retriever | str | Path) -> Iterator[Source]:
    """Yields the source of an export.

    Args:
        retriever: A loaded one, whose weights keep the precision that it was loaded in; or the place of one (a directory
            or s3://), whose weights keep the precision that they were saved in.

    Raises:
        InputError: There is no retriever at that place, or it is not complete.
    """
    if isinstance(retriever, Retriever):
        yield _source(retriever, retriever.model.dtype)
        return
    with fetched(retriever) as directory:
        loaded = Retriever.load(directory, precision="fp32")
        yield _source(loaded, saved_dtype(directory / MODEL_DIRECTORY))


def _source(retriever: Retriever, dtype: torch.dtype) -> Source:
    exact = retriever
    if retriever.model.dtype != torch.float32:
        exact = Retriever(copy.deepcopy(retriever.model).float(), retriever.tokenizer, retriever.card)
    texts = {side: probes(exact, side) for side in SIDES}
    rows = {side: exact.prompt(side).batch(texts[side]) for side in SIDES}
    vectors = {side: exact.encode_rows(side, rows[side], BATCH_TOKENS) for side in SIDES}
    if retriever.model.dtype != dtype:
        retriever.model.to(dtype)
    return Source(retriever, texts, rows, vectors)


def probes(retriever: Retriever, side: Side) -> list[str]:
    """Returns short texts, with and without title, of several scripts and endings, with names of special tokens, and a long one.

    The long one is such that its cut does not fall on white space: `Retriever` drops white space at a cut, and what cuts
    token ids does not. Nor does it cut characters of several tokens: of the short ones, those that fit are taken.
    """
    names = " ".join(token for token in (retriever.tokenizer.bos_token, retriever.tokenizer.eos_token) if token)
    titled = [passage_text(title, text, retriever.card.title_joiner) for title, text in _TITLED]
    encoder = retriever.prompt(side)
    words = (_LONG * (encoder.length // 8 + 2)).split()
    long = [" ".join(words[start:]) for start in range(12)]
    full = [text for text, row in zip(long, encoder.batch(long), strict=True) if len(row) == encoder.length]
    short = [*_PLAIN, *titled, f"the names {names} in a text"]
    roomy = PromptEncoder(retriever.tokenizer, getattr(retriever.card, side), _ROOMY)
    fitting = [text for text, row in zip(short, roomy.batch(short), strict=True) if len(row) <= encoder.length]
    return [*fitting, (full or long)[0]]


def check_same_vectors(source: Source, got: dict[Side, Vectors], what: str) -> None:
    """Raises InputError unless an export's vectors of the probes are the retriever's in cosine and length."""
    for side in SIDES:
        expected, actual = source.vectors[side], np.asarray(got[side], dtype=np.float32)
        lengths = np.linalg.norm(expected, axis=1), np.linalg.norm(actual, axis=1)
        cosines = (expected * actual).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-12)
        close = (cosines >= MINIMUM_COSINE) & np.isclose(lengths[0], lengths[1], rtol=1e-3)
        if not close.all():
            worst = int(np.flatnonzero(~close)[0])
            raise refusal(
                f"as {what} the {side} {_short(source.texts[side][worst])} gets another vector (cosine {cosines[worst]:.4f})"
            )


def check_same_ids(source: Source, side: Side, got: Iterable[list[int]]) -> None:
    """Raises InputError unless a tokenizer's ids of the probes are the retriever's."""
    for text, expected, actual in zip(source.texts[side], source.rows[side], got, strict=True):
        if expected != actual:
            raise refusal(
                f"its tokenizer joins the {side} {_short(text)} and the prompt in a way that cannot be told in advance"
            )


def refusal(reason: str, **place: Any) -> InputError:
    """Returns the error of an export that would not be the retriever; nothing has been written then."""
    return InputError(reason, field="format", hint="use Retriever, or export it as merged", **place)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")
