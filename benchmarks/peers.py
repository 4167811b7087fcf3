"""Encodes with sentence-transformers, in an environment of the peer's own: see bench.py, which starts it.

    python peers.py EXPORT TEXTS VECTORS BACKEND PRECISION

EXPORT is a directory in sentence-transformers' format, TEXTS a JSON list; the vectors go to VECTORS (.npy). ONNX Runtime and
OpenVINO come through optimum, which does not take the newest transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import serve
from sentence_transformers import SentenceTransformer

HINTS = {"fp32": "f32", "bf16": "bf16"}


def main() -> None:
    """Loads the model and answers."""
    export, texts, vectors, backend, precision = sys.argv[1:]

    def make() -> Callable[[], dict[str, str]]:
        model, passages = loaded(export, backend, precision), json.loads(Path(texts).read_text())
        settings = {"normalize_embeddings": True, "show_progress_bar": False}

        def encode() -> dict[str, str]:
            found = model.encode_document(passages, **settings)
            np.save(vectors, found)
            return {} if np.isfinite(found).all() else {"useless": "its vectors are not finite"}

        return encode

    serve(make)


def loaded(export: str, backend: str, precision: str) -> SentenceTransformer:
    """The model, by one of sentence-transformers' backends."""
    settings: dict[str, Any] = {"dtype": torch.bfloat16} if (backend, precision) == ("torch", "bf16") else {}
    if backend == "openvino":
        settings = {"ov_config": {"INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32")}}
        settings |= {"quantization_config": {"bits": 8}} if precision == "int8" else {}
    model = SentenceTransformer(export, backend=backend, device="cpu", local_files_only=True, model_kwargs=settings)
    inner = model[0].auto_model
    if backend == "onnx" and "position_ids" in getattr(inner, "input_names", ()):
        read = inner.forward

        def with_positions(attention_mask: torch.Tensor, **inputs: Any) -> Any:
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            return read(attention_mask=attention_mask, position_ids=positions, **inputs)

        inner.forward = with_positions
    return model


if __name__ == "__main__":
    main()
