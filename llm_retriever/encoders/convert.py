"""Converts pickled weights to safetensors, without running code that a pickle may hold (`torch.load(weights_only=True)`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from llm_retriever import files
from llm_retriever.errors import InputError

_NAMES = {"pytorch_model": "model", "adapter_model": "adapter_model"}
_INDEX = ".bin.index.json"
_KEPT = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "README.md", "LICENSE*", "NOTICE*")


def convert(directory: Path, output: Path) -> list[str]:
    """Copies a model's directory with its pickled weights as safetensors; modules in folders, such as `2_Dense`, come along.

    Args:
        directory: A Hugging Face, PEFT or sentence-transformers directory with `*.bin`.
        output: Becomes the copy; nothing, or an empty directory, may be there.

    Returns:
        Names of the files that were converted, relative to the directory.

    Raises:
        InputError: There is nothing to convert, a file holds something other than weights, one directory holds the
            other, or the output is not empty.
    """
    source, target = directory.resolve(), output.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        problem = "lies within what is converted" if target.is_relative_to(source) else "holds what is converted"
        raise InputError(problem, file=output, hint="give another directory")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        # A copy may hold whatever a model's directory may: an earlier copy cannot be told from somebody's files.
        raise InputError("is not an empty directory", file=output, hint="give another one, or remove it")
    pickled = sorted(path for path in directory.rglob("*.bin") if path.stem.partition("-")[0] in _NAMES)
    if not pickled:
        raise InputError("no pickled weights (pytorch_model*.bin, adapter_model.bin)", file=directory)
    with files.atomic_directory(output) as draft:
        _copy(directory, draft)
        for path in pickled:
            target = draft / path.relative_to(directory).with_name(_renamed(path.stem) + ".safetensors")
            target.parent.mkdir(parents=True, exist_ok=True)
            save_file(_weights(path), target, metadata={"format": "pt"})
    return [str(path.relative_to(directory)) for path in pickled]


def _copy(directory: Path, draft: Path) -> None:
    chosen = {path for pattern in _KEPT for path in directory.rglob(pattern) if path.is_file()}
    for path in sorted(chosen):
        target = draft / path.relative_to(directory)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(_INDEX):
            stem = path.name.removesuffix(_INDEX)
            _write_index(path, target.with_name(f"{_renamed(stem)}.safetensors.index.json"))
        else:
            shutil.copyfile(path, target)


def _renamed(stem: str) -> str:
    kind, dash, shard = stem.partition("-")
    return _NAMES.get(kind, kind) + dash + shard


def _write_index(path: Path, target: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    shards = content.get("weight_map", {})
    content["weight_map"] = {name: f"{_renamed(Path(file).stem)}.safetensors" for name, file in shards.items()}
    files.write_json(target, content)


def _weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a foreign pickle makes torch raise, it is not a file of weights.
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"not a file of weights alone ({reason})", file=path) from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError("holds something other than named tensors", file=path)
    # Tensors that share memory would be refused; each gets its own.
    return {name: value.clone().contiguous() for name, value in content.items()}
