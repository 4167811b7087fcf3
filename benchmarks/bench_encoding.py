"""Encoding against sentence-transformers: its PyTorch, ONNX and OpenVINO backends, from texts to vectors.

The model is RepLLaMA's recipe on the backbone, which sentence-transformers can express; each side chooses its own batches.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from roofline import operations, products
from works import MATRIX, OURS, Here, Inputs, There, Work

from llm_retriever.data.collection import Collection, Passage
from llm_retriever.encoders.retriever import Retriever
from llm_retriever.exporting.export import export_sentence_transformers
from llm_retriever.methods import method
from llm_retriever.models.card import Lineage, RetrieverCard
from llm_retriever.models.prompts import passage_text
from llm_retriever.precision import dtype_of

METHOD = method("repllama")
PEER_PACKAGES = (
    "torch==2.13.0",
    "sentence-transformers",
    "transformers<4.58",
    "optimum-onnx",
    "onnxruntime",
    "optimum-intel",
)
PEER_PACKAGES += ("openvino", "nncf")
TOLERANCE = {"fp32": 0.9999, "bf16": 0.995}
"""Least cosine between a passage's vectors; every backend rounds at other places."""


def retriever_of(inputs: Inputs, precision: str) -> Retriever:
    """The backbone, read as the recipe says."""
    card = RetrieverCard.of(METHOD, Lineage(str(inputs.backbone)))
    return Retriever.on_backbone(inputs.backbone, card, precision=precision)


def passages_of(inputs: Inputs) -> list[Passage]:
    """The first passages of the collection."""
    return list(itertools.islice(Collection.open(inputs.collection).passages(), inputs.passages))


def ours(precision: str, inputs: Inputs) -> Callable[[], dict[str, float]]:
    """Encodes with Retriever."""
    retriever, passages = retriever_of(inputs, precision), passages_of(inputs)
    lengths = [len(row) for row in retriever.tokenise_passages(passages)]
    needed = {"operations": operations(retriever.model, lengths, passes=1, read=1), "tokens": sum(lengths)}

    def encode() -> dict[str, float]:
        np.save(inputs.vectors(f"encode-{precision}", OURS), retriever.encode_passages(passages))
        return needed

    return encode


def matrix(precision: str, inputs: Inputs) -> Callable[[], dict[str, float]]:
    """Only multiplies."""
    return products(retriever_of(inputs, precision).model, dtype_of(precision))


def peer(backend: str, precision: str, inputs: Inputs) -> list[str]:
    """The command of a peer, after its export is written, and its environment is made if it needs one of its own."""
    export = inputs.scratch / "export"
    if not export.exists():
        export_sentence_transformers(retriever_of(inputs, "fp32"), export)
    texts = [passage_text(p.title, p.text, METHOD.title_joiner) for p in passages_of(inputs)]
    python = sys.executable if backend == "torch" else str(environment(inputs.scratch / "peers"))
    directory = export if backend == "torch" else older(export)
    way = f"sentence-transformers {backend}"
    files = [directory, inputs.texts("passages", texts), inputs.vectors(f"encode-{precision}", way)]
    return [python, str(Path(__file__).with_name("peers.py")), *map(str, files), backend, precision]


def environment(directory: Path) -> Path:
    """The Python of the peers' virtual environment."""
    python = directory / "bin" / "python"
    if not (directory / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER_PACKAGES], check=True)
        (directory / "complete").touch()
    return python


def older(export: Path) -> Path:
    """The export in the words of the sentence-transformers that goes with an older transformers."""
    directory = export.with_name("export-older")
    if not directory.exists():
        shutil.copytree(export, directory)
        settings = json.loads((export / "sentence_bert_config.json").read_text())
        kept = {"max_seq_length": settings["max_seq_length"], "do_lower_case": False}
        (directory / "sentence_bert_config.json").write_text(json.dumps(kept))
        modules = json.loads((export / "modules.json").read_text())
        for module in modules:
            module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
        (directory / "modules.json").write_text(json.dumps(modules))
        pooling = json.loads((export / "1_Pooling" / "config.json").read_text())
        kept = {"word_embedding_dimension": pooling["embedding_dimension"], "pooling_mode_cls_token": False}
        kept |= {"pooling_mode_mean_tokens": False, f"pooling_mode_{pooling['pooling_mode']}": True}
        (directory / "1_Pooling" / "config.json").write_text(json.dumps(kept))
    return directory


def agreement(precision: str, row: dict[str, Any], inputs: Inputs) -> str:
    """Least cosine of any passage's vectors by ours and each peer's that ran."""
    mine, said = np.load(inputs.vectors(row["work"], OURS)), []
    for name in row["ways"]:
        path = inputs.vectors(row["work"], name)
        if name in (OURS, MATRIX):
            continue
        least = float((mine * np.load(path)).sum(axis=1).min())
        said.append(f"{name.rpartition(' ')[2]} {least:.4f}{'' if least >= TOLERANCE[precision] else ' (differs)'}")
    return f"least cosine: {', '.join(said)}"


def work(precision: str) -> Work:
    """Encoding in a precision."""
    ways: dict[str, Here | There] = {OURS: Here(functools.partial(ours, precision))}
    backends = ("torch", "onnx", "openvino") if precision == "fp32" else ("torch", "openvino")
    for backend in backends:
        ways[f"sentence-transformers {backend}"] = There(functools.partial(peer, backend, precision))
    ways[MATRIX] = Here(functools.partial(matrix, precision))
    check = functools.partial(agreement, precision)
    return Work(f"encode-{precision}", f"encode, {precision}, natural lengths", ways, 1.5, 0.7, check)


WORKS = (work("bf16"), work("fp32"))
