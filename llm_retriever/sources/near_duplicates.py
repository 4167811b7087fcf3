"""Texts that say nearly the same: MinHash over word shingles, banded so that only likely pairs are compared.

Broder 1997, "On the resemblance and containment of documents"; the estimate of the Jaccard similarity of two shingle sets
is the share of equal minima. Deterministic: no seed but the constant ones below.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

HASHES = 64
BANDS = 16
WORD = re.compile(r"\w+")
_DRAW = np.random.default_rng(20_240_417)
_FACTORS = _DRAW.integers(1, 2**63, (HASHES, 1), dtype=np.uint64) | np.uint64(1)
_TERMS = _DRAW.integers(0, 2**63, (HASHES, 1), dtype=np.uint64)
_SHINGLE_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def first_of_each(texts: Sequence[str], *, shingle: int, similarity: float) -> list[bool]:
    """Marks the texts that are not nearly the same as an earlier marked one.

    Args:
        texts: In order of preference.
        shingle: Words in a shingle; 1 compares the words alone.
        similarity: Estimated Jaccard similarity from which two texts count as nearly the same.

    Returns:
        One truth value a text; letter case and punctuation play no part.
    """
    kept: list[bool] = []
    signatures: list[np.ndarray] = []
    buckets: dict[bytes, list[int]] = {}
    for i, text in enumerate(texts):
        signature = _signature(text, shingle)
        signatures.append(signature)
        bands = list(_bands(signature))
        near = {j for band in bands for j in buckets.get(band, ())}
        kept.append(not any(np.mean(signatures[j] == signature) >= similarity for j in near))
        if kept[-1]:
            for band in bands:
                buckets.setdefault(band, []).append(i)
    return kept


def _signature(text: str, shingle: int) -> np.ndarray:
    """The minima of a text's shingles under the hash functions, uint64 [HASHES]."""
    words = np.array([zlib.crc32(word.encode()) for word in WORD.findall(text.lower())] or [0], np.uint64)
    length = max(1, len(words) - shingle + 1)
    shingles = np.zeros(length, np.uint64)
    for offset in range(min(shingle, len(words))):
        shingles = (shingles * _SHINGLE_FACTOR) ^ words[offset : offset + length]
    mixed = shingles * _FACTORS + _TERMS
    return (mixed ^ (mixed >> np.uint64(31))).min(axis=1)


def _bands(signature: np.ndarray) -> Iterator[bytes]:
    for number, band in enumerate(signature.reshape(BANDS, -1)):
        yield bytes([number]) + band.tobytes()
