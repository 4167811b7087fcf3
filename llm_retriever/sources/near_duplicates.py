"""Texts that say nearly the same: MinHash over word shingles, banded so that only likely pairs are compared.

Broder 1997, "On the resemblance and containment of documents"; the estimate of the Jaccard similarity of two shingle sets
is the share of equal minima. Deterministic: no seed but the constant ones below.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

HASHES = 64
BANDS = 16
WORD = re.compile(r"\w+")
_DRAW = np.random.default_rng(20_240_417)
_FACTORS = _DRAW.integers(1, 2**63, (HASHES, 1), dtype=np.uint64) | np.uint64(1)
_TERMS = _DRAW.integers(0, 2**63, (HASHES, 1), dtype=np.uint64)
_SHINGLE_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class NearDuplicates:
    """Remembers texts and tells whether a further one says nearly the same.

    Args:
        shingle: Words in a shingle; 1 compares the words alone.
        similarity: Estimated Jaccard similarity from which two texts count as nearly the same.

    Example:
        >>> seen = NearDuplicates(shingle=1, similarity=0.75)
        >>> seen.adds("Close the file."), seen.adds("close the file"), seen.adds("Open a socket.")
        (True, False, True)
    """

    def __init__(self, *, shingle: int, similarity: float) -> None:
        self.shingle, self.similarity = shingle, similarity
        self._buckets: dict[bytes, list[np.ndarray]] = {}

    def adds(self, text: str) -> bool:
        """Whether the text is new, and is remembered; letter case and punctuation play no part."""
        signature = _signature(text, self.shingle)
        raw = signature.tobytes()
        size = len(raw) // BANDS
        bands = [bytes([i]) + raw[i * size : (i + 1) * size] for i in range(BANDS)]
        near = {id(other): other for band in bands for other in self._buckets.get(band, ())}
        if any((other == signature).sum() >= self.similarity * HASHES for other in near.values()):
            return False
        for band in bands:
            self._buckets.setdefault(band, []).append(signature)
        return True


def _signature(text: str, shingle: int) -> np.ndarray:
    """The minima of a text's shingles under the hash functions, uint64 [HASHES]."""
    words = np.array([zlib.crc32(word.encode()) for word in WORD.findall(text.lower())] or [0], np.uint64)
    length = max(1, len(words) - shingle + 1)
    shingles = np.zeros(length, np.uint64)
    for offset in range(min(shingle, len(words))):
        shingles = (shingles * _SHINGLE_FACTOR) ^ words[offset : offset + length]
    mixed = shingles * _FACTORS + _TERMS
    return (mixed ^ (mixed >> np.uint64(31))).min(axis=1)
