"""The stored form of a vector: its first numbers, in float32, in float16, or in int8 with a scale of its own.

A row of int8 is the numbers and, behind them, the bytes of their scale, a little-endian float32: number · scale is what was
encoded, to within half a scale. So a row says all of itself, and moves from one index to another as it is.
"""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from llm_retriever.settings.index import VectorType

Floats = NDArray[np.float32]

DTYPES: dict[str, np.dtype[Any]] = dict(
    zip(get_args(VectorType), map(np.dtype, (np.float32, np.float16, np.int8)), strict=True)
)
SCALE = np.dtype("<f4")
LARGEST = 127
"""Of an int8: the scale is symmetric, -128 is not used."""


def row_width(dtype: str, dimension: int) -> int:
    """Numbers of a stored row, those of the scale included.

    >>> row_width("fp16", 256), row_width("int8", 256)
    (256, 260)
    """
    return dimension + (SCALE.itemsize if dtype == "int8" else 0)


def row_bytes(dtype: str, dimension: int) -> int:
    """Bytes of a stored vector.

    >>> row_bytes("fp16", 256), row_bytes("int8", 256)
    (512, 260)
    """
    return row_width(dtype, dimension) * DTYPES[dtype].itemsize


def first_numbers(vectors: Floats, dimension: int, *, normalised: bool) -> Floats:
    """Cuts vectors to their first numbers; whole vectors stay as they are.

    Args:
        vectors: float32 [rows, at least `dimension`].
        dimension: How many to keep.
        normalised: Whether the vectors have length 1, as what is left of them shall have.

    Returns:
        float32 [rows, dimension].
    """
    if vectors.shape[1] == dimension:
        return vectors
    kept = np.ascontiguousarray(vectors[:, :dimension])
    if not normalised:
        return kept
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.divide(kept, lengths, out=kept, where=lengths > 0)


def encoded(vectors: Floats, dtype: str) -> NDArray[Any]:
    """Encodes vectors for storage, [rows, row_width]; what is not finite, or becomes so, is not finite when decoded.

    Args:
        vectors: float32 [rows, dimension].
        dtype: A key of `DTYPES`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "int8":
            return vectors.astype(DTYPES[dtype], copy=False)
        scales = (np.abs(vectors).max(axis=1, keepdims=True) / LARGEST).astype(SCALE)
        numbers = np.divide(vectors, scales, out=np.zeros_like(vectors), where=scales != 0)
        # A scale of few bits, as that of numbers near the smallest float32, can be too small for the largest of them.
        whole = np.clip(np.rint(numbers), -LARGEST, LARGEST).astype(np.int8)
    return np.hstack([whole, scales.view(np.int8)])


def decoded(rows: NDArray[Any], out: Floats | None = None) -> Floats:
    """Decodes stored rows to float32 [rows, dimension].

    Args:
        rows: As `encoded` made them, [rows, row_width].
        out: Where they go; None = a new array, or the rows themselves where they are float32.
    """
    if rows.dtype == np.int8:
        numbers, scales = rows[:, : -SCALE.itemsize], rows[:, -SCALE.itemsize :].view(SCALE)
        with np.errstate(over="ignore", invalid="ignore"):
            product: Floats = np.multiply(numbers, scales, out=out, dtype=np.float32)
        return product
    if out is None:
        return rows.astype(np.float32, copy=False)
    out[:] = rows
    return out
