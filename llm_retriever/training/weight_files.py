"""Reads weights from safetensors files one by one and writes them shard by shard, so that memory does not grow with a model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from llm_retriever.models.loading import load_config
from llm_retriever.models.model_files import WEIGHTS, WEIGHTS_FILE, WEIGHTS_INDEX

SHARD_BYTES = 2 << 30
"""The library that writes a shard holds it twice: its tensors, and their bytes."""
_GENERATION_FILE = "generation_config.json"
# What PEFT puts between a module's place and its weight.
_WRAPPERS = (".base_layer", ".token_adapter", ".original_module")
_CONSTANTS = "rotary_emb.inv_freq"
"""End of the name of what old checkpoints hold and models compute."""


class WeightFiles:
    """The tensors in the weight files of a directory, by name; each is read when it is asked for.

    Args:
        directory: Directory with `model*.safetensors`.
    """

    def __init__(self, directory: Path) -> None:
        self._files: dict[str, Path] = {}
        for path in sorted(directory.glob(WEIGHTS)):
            with safe_open(path, framework="pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)

    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._files)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor, from the header alone."""
        with safe_open(self._files[name], framework="pt") as file:
            return list(file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> Tensor:
        # The file is opened for each: what was read of it stays in memory as long as it is open.
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)


def write_shards(directory: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Writes tensors to weight files of at most `SHARD_BYTES`, with an index where there are several, as transformers reads.

    Args:
        directory: Existing; its other weight files are removed.
        tensors: Name and tensor; each is let go when its shard is written.
    """
    for old in directory.glob(WEIGHTS):
        old.unlink()
    (directory / WEIGHTS_INDEX).unlink(missing_ok=True)
    shards, size, numbers = list[list[str]](), 0, 0
    for number, shard in enumerate(_shards(tensors), start=1):
        save_file(shard, directory / f"model-{number:05d}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        size += sum(tensor.nbytes for tensor in shard.values())
        numbers += sum(tensor.numel() for tensor in shard.values())
        shard.clear()
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, name in enumerate(names if len(shards) > 1 else [WEIGHTS_FILE], start=1):
        (directory / f"model-{number:05d}.safetensors").replace(directory / name)
    if len(shards) > 1:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {
            "metadata": {"total_parameters": numbers, "total_size": size},
            "weight_map": dict(sorted(places.items())),
        }
        (directory / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard, size = dict[str, Tensor](), 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    yield shard


class OtherNamesError(Exception):
    """The files name or join weights otherwise than the model, as where transformers joins experts: it must be loaded whole."""


class StreamedModel:
    """A causal LM with its head whose weights stay in files, in fp32; its modules read theirs when they run.

    Args:
        directory: A backbone or model directory.

    Attributes:
        model: The model; an adapter may be put on it.
        names: Names of its weights, as it is saved.
        replaced: Weights that stand in place of those of the directory, and by which names.

    Raises:
        OtherNamesError: Its files do not hold the weights under the model's own names.
    """

    def __init__(self, directory: Path) -> None:
        config = load_config(directory)
        with init_empty_weights(include_buffers=False):
            self.model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        if (directory / _GENERATION_FILE).exists():
            self.model.generation_config = GenerationConfig.from_pretrained(directory)
        self.model.tie_weights()
        _leave_unread(self.model)
        self._files = WeightFiles(directory)
        self.names = [name for name, _ in self.model.named_parameters()]
        self._keys = self._found()
        self.replaced: tuple[WeightFiles, dict[str, str]] | None = None

    def _found(self) -> dict[str, str]:
        """Maps the name of every weight to its key in the files."""
        prefix, known, keys = f"{self.model.base_model_prefix}.", self._files.names(), {}
        for name, empty in self.model.state_dict(keep_vars=True).items():
            if not isinstance(empty, nn.Parameter) or name not in self.names:
                continue
            fitting = [key for key in (name, prefix + name, name.removeprefix(prefix)) if key in known]
            if not fitting or self._files.shape(fitting[0]) != list(empty.shape):
                raise OtherNamesError(name)
            keys[name] = fitting[0]
        other = sorted(key for key in known - set(keys.values()) if not key.endswith(_CONSTANTS))
        persistent = [name for name, value in self.model.state_dict(keep_vars=True).items() if not _is_unread(value)]
        if other or persistent:
            raise OtherNamesError([*other, *persistent][0])
        return keys

    def replace(self, files: WeightFiles) -> None:
        """Puts other weights in place of some: those of the model, or of its inner model, by their own names.

        Raises:
            RuntimeError: The model has no weights of such a name.
        """
        prefix, keys = f"{self.model.base_model_prefix}.", dict[str, str]()
        for name in files.names():
            own = next((known for known in (name, prefix + name) if known in self._keys), None)
            if own is None and not self._is_tied(name):
                raise RuntimeError(f"there are no weights named {name}")
            keys |= {own: name} if own else {}
        self.replaced = files, keys

    def _is_tied(self, name: str) -> bool:
        return name in dict(self.model.named_parameters(remove_duplicate=False))

    def weight(self, name: str) -> Tensor:
        """Returns a weight, in fp32, before an adapter is merged into it."""
        if self.replaced and name in self.replaced[1]:
            return self.replaced[0][self.replaced[1][name]].float()
        return self._files[self._keys[name]].float()

    def merged_weight(self, name: str) -> Tensor:
        """Returns a weight, in fp32, with the adapter, if any, merged into it."""
        path, _, own = name.rpartition(".")
        module = self.model.get_submodule(path)
        tuner = getattr(module, "token_adapter", module)
        if not isinstance(tuner, BaseTunerLayer):
            return self.weight(name)
        layer = tuner.get_base_layer()
        with self._read(path, layer):
            tuner.merge()
            tuner.merged_adapters.clear()
            merged: Tensor = getattr(layer, own).detach()
        return merged

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Yields the model, whose modules read their weights when they run, and let go of them afterwards."""
        handles = list[Any]()
        for path, module in self.model.named_modules():
            if any(map(_is_unread, module._parameters.values())):
                handles += self._attached(path, module)
        try:
            yield self.model
        finally:
            for handle in handles:
                handle.remove()

    def _attached(self, path: str, module: nn.Module) -> Sequence[Any]:
        stack = contextlib.ExitStack()

        def read(*_: Any) -> None:
            stack.enter_context(self._read(path, module))

        return (
            module.register_forward_pre_hook(read),
            module.register_forward_hook(lambda *_: stack.close()),
        )

    @contextlib.contextmanager
    def _read(self, path: str, module: nn.Module) -> Iterator[None]:
        """Holds a module's weights in memory while inside."""
        for wrapper in _WRAPPERS:
            path = path.replace(wrapper, "")
        before = dict(module._parameters)
        for name, empty in before.items():
            if _is_unread(empty):
                module._parameters[name] = nn.Parameter(self.weight(f"{path}.{name}"), requires_grad=False)
        try:
            yield
        finally:
            module._parameters.update(before)

    def hold_embeddings(self) -> None:
        """Reads the table of input embeddings for good, as PEFT needs where rows of it were trained."""
        module = self.model.get_input_embeddings()
        path = next(path for path, known in self.model.named_modules() if known is module)
        module.weight = nn.Parameter(self.weight(f"{path}.weight"), requires_grad=False)

    def save(self, directory: Path, dtype: torch.dtype) -> None:
        """Writes weights, adapter merged, and configuration, as `save_pretrained` does with all of them in memory."""
        directory.mkdir(parents=True, exist_ok=True)
        write_shards(directory, ((name, self.merged_weight(name).to(dtype)) for name in self.names))
        config = self.model.config
        config.dtype, config.architectures = str(dtype).removeprefix("torch."), [type(self.model).__name__]
        config.save_pretrained(directory)
        if self.model.can_generate():
            self.model.generation_config.save_pretrained(directory)


def _leave_unread(model: nn.Module) -> None:
    """Puts tensors that take no memory in place of the weights; PEFT, unlike with the device `meta`, does not mind."""
    new = dict[int, nn.Parameter]()
    for module in model.modules():
        for name, empty in module._parameters.items():
            if empty is not None:
                unread = new.setdefault(
                    id(empty), nn.Parameter(torch.zeros(()).expand(empty.shape), requires_grad=False)
                )
                unread._is_unread = True  # type: ignore[attr-defined]
                module._parameters[name] = unread


def _is_unread(weight: Tensor | None) -> bool:
    return getattr(weight, "_is_unread", False)
