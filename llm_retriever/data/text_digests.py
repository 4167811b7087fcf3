"""Digests of texts as a matrix that can be stored, sorted and searched, without the texts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 16
HALF = np.dtype("<u8")

Digests = NDArray[np.uint64]


def text_digests(texts: Iterable[str]) -> Digests:
    """Hashes every text by BLAKE2b to 128 bits, uint64 [texts, 2]."""
    joined = bytearray()
    for text in texts:
        joined += hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
    return np.frombuffer(bytes(joined), HALF).reshape(-1, 2)
