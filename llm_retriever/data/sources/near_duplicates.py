"""Finds texts that say nearly the same: MinHash over word shingles, banded so that only likely pairs are compared.

Where a script writes no spaces, a shingle is of characters.

Broder 1997, "On the resemblance and containment of documents"; the estimate of the Jaccard similarity of two shingle sets
is the share of equal minima. Deterministic: no seed but the constant ones below.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

from llm_retriever.data.scripts import words

HASHES = 64
BANDS = 16
"""Of 4 hashes each: most pairs meet in a band from a similarity of about (1/16)^(1/4) = 0.5 on (Leskovec et al., MMDS, 3.4)."""
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


class Resembling:
    """Recognises texts that say nearly the same as one of a few known ones, by the exact Jaccard similarity.

    Args:
        texts: The known ones.
        shingle: Words in a shingle.
        similarity: Above 0; from which two texts count as nearly the same.

    Example:
        >>> known = Resembling(["Close the file at the end."], shingle=2, similarity=0.6)
        >>> "close the file at the start" in known, "Open a socket at the start." in known
        (True, False)
    """

    def __init__(self, texts: Iterable[str], *, shingle: int, similarity: float) -> None:
        self._shingle, self._similarity = shingle, similarity
        self._known = [set(self._shingles(text)) for text in texts]

    def __contains__(self, text: str) -> bool:
        """Whether a known text is that similar; letter case and punctuation play no part."""
        shingles = self._shingles(text)
        return any(self._is_similar(shingles, known) for known in self._known)

    def _shingles(self, text: str) -> list[tuple[str, ...]]:
        tokens = words(text.lower())
        return list(zip(*(tokens[i:] for i in range(self._shingle)), strict=False)) or [tuple(tokens)]

    def _is_similar(self, shingles: list[tuple[str, ...]], known: set[tuple[str, ...]]) -> bool:
        # A share of at most 1 - similarity may be missing: most texts are done with after a few shingles.
        allowed, missing = (1 - self._similarity) * len(shingles), set[tuple[str, ...]]()
        for one in shingles:
            if one not in known:
                missing.add(one)
                if len(missing) > allowed + 1e-9:
                    return False
        shared = len(set(shingles)) - len(missing)
        return shared >= self._similarity * (len(known) + len(missing)) - 1e-9


def _signature(text: str, shingle: int) -> np.ndarray:
    """The minima of a text's shingles under the hash functions, uint64 [HASHES]."""
    hashes = np.array([zlib.crc32(word.encode()) for word in words(text.lower())] or [0], np.uint64)
    length = max(1, len(hashes) - shingle + 1)
    shingles = np.zeros(length, np.uint64)
    for offset in range(min(shingle, len(hashes))):
        shingles = (shingles * _SHINGLE_FACTOR) ^ hashes[offset : offset + length]
    mixed = shingles * _FACTORS + _TERMS
    return (mixed ^ (mixed >> np.uint64(31))).min(axis=1)
